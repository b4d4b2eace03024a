"""Alerts: what is wrong for long enough to be told, on every page, by webhook and by e-mail.

`rules` (pure) decides; `look` compares nodes, deployments and samples with it every few seconds; `delivery` sends what
is to be told until it has arrived or was tried often enough.
"""
