"""
Where services come from: one module for each source, all with the protocol `Registry`.

`programs.py`: programs that run beside an agent on this machine, and the services that weft.yaml declares for them.
"""

from weft.registry.base import Registry, View
from weft.registry.programs import Declared, Programs, Registration, RegistrationRefused

__all__ = ["Declared", "Programs", "Registration", "RegistrationRefused", "Registry", "View"]
