"""From a task and thirty demonstrations to a policy that moves a real arm from pixels."""

__version__ = "0.1.0"
