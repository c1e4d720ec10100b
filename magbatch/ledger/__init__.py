"""What is done, read from the committed objects alone, and the proof that nothing is missing.

Imports within: layout, lease < manifest < objects, staging < audit < ledger < finalise, letters, open, verify.
"""
