"""What nodes tell the rest of Quarterdeck. Sent in a worker; receivers may queue, must not wait."""

from django.dispatch import Signal

#: A job has ended. Arguments: job (nodes.models.Job).
job_ended = Signal()
#: Once a second, in watch: a chance to compare what is wanted with what is. No arguments.
tick = Signal()
