"""What will run on this machine, and whether it is right: `freqformer doctor`."""

from freqformer.doctor.check import Check, Speed, run_check
from freqformer.doctor.machine import Choice, Gpu, Machine, describe_machine

__all__ = ["Check", "Choice", "Gpu", "Machine", "Speed", "describe_machine", "run_check"]
