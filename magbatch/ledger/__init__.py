"""The rows that are done, read from the committed objects alone, and the proof that no row is missing.

Imports within: findings, layout, strict_json, units < holder, manifest < claim < lease, objects, staging < output
< ledger < audit, contract, letters, open, tidy < finalise, proof_files, proof_objects < verify.
"""
