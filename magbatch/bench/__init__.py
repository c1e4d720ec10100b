"""`magbatch bench`: how much of a machine's engine magbatch uses, against vLLM by itself and against ray.data.llm.

Every arm answers the same rows with the same resolved engine, from a cold prefix cache, in turn on the same machine;
what an arm is credited with is read from what it wrote.

Imports within: bare_arm, hand_arm, probe, ray_arm, workloads < process, raw_arm < arms < measure < report < bounds <
prefixes < run.
"""
