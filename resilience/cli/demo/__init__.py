"""`python -m resilience demo`: a real service falls sick, a real Redis dies, and their clients live through it.

Nothing is imported here: the service's own process comes through this package too, and needs the standard library only.
"""
