"""A vLLM scheduler that reads each prompt in one step, for rows with a seed on CPUs.

Where a prompt is read in several steps, vLLM 0.32 winds the row's random generator back after each but the last
(`GPUModelRunner._bookkeeping_sync`), which generators on CPUs cannot do: the engine dies ("CPU Generator does not use
offset"). Text is read in one step where `enable_chunked_prefill` is off; this is for images, before which the scheduler
cuts a prompt if the step has no room for them.
"""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

assert hasattr(Scheduler, "_try_schedule_encoder_inputs"), "vLLM calls it otherwise now"


class WholePrompts(Scheduler):
    """Lets a prompt wait for the next step, rather than cut it before an image."""

    def _try_schedule_encoder_inputs(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int, **options: Any
    ) -> Any:
        found = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, **options
        )
        return found if found[1] == num_new_tokens else ([], 0, encoder_compute_budget, [], [])
