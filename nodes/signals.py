"""What nodes tell the rest of Quarterdeck. Sent in a worker; receivers may queue, must not wait."""

from django.dispatch import Signal

#: A job has ended. Arguments: job (nodes.models.Job).
job_ended = Signal()
#: Once a second, in watch: a chance to compare what is wanted with what is. No arguments.
tick = Signal()
#: A cluster changed its state: its Ray started, lost a node or its head, has them back, ended. Arguments: cluster.
cluster_changed = Signal()
#: Who stands on this cluster? Receivers return names for people: of what needs its Ray now where ``running``, else of
#: all that could not be without the cluster. Arguments: cluster, running.
cluster_used = Signal()
#: A node that could not be reached is back. Arguments: node.
node_back = Signal()
