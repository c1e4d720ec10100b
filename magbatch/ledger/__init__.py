"""The rows that are done, read from the committed objects alone, and the proof that no row is missing.

Imports within: findings, holder, layout, strict_json, units < claim, manifest < lease, objects, staging < output
< ledger < audit, contract, letters, open, tidy < finalise, proof_files, proof_objects < verify.
"""
