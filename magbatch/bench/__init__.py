"""`magbatch bench`: the share of an engine's speed that magbatch reaches, against plain vLLM and ray.data.llm.

Every arm answers the same rows with the same resolved engine arguments, from a cold prefix cache, in turn on one
machine. An arm is credited only with the rows and tokens that it wrote.

Imports within: bare_arm, hand_arm, probe, ray_arm, workloads < process, raw_arm < arms < measure < report < bounds <
prefixes < run.
"""
