"""`python -m resilience demo`: a real service falls sick, and two clients live through it.

Nothing is imported here: the service's own process comes through this package too, and needs the standard library only.
"""
