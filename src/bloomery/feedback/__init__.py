"""People's opinions: the store they go into, and the statistics that say what they are worth.

People, simulated annotators and AI annotators write through one API, `store.Store`. Everything else in
this room is arithmetic on `types.Ranking`. No torch here.
"""
