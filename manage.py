#!/usr/bin/env python
"""Django's command line for Quarterdeck."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    # The gateway does without most of the applications, and with much less memory for it.
    slim = "_gateway" if sys.argv[1:2] == ["gateway"] else ""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"controlplane.settings{slim}")
    execute_from_command_line(sys.argv)
