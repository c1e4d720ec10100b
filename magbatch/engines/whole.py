"""A vLLM scheduler that reads each prompt in one step, for rows with a seed on CPUs.

If vLLM 0.32 reads a prompt in several steps, it resets the row's random generator after each step except the last
(`GPUModelRunner._bookkeeping_sync`). Generators on CPUs cannot do that, and the engine dies ("CPU Generator does not
use offset"). With `enable_chunked_prefill` off, text is read in one step. Images need this class: the scheduler cuts a
prompt before an image that does not fit into the step.
"""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

assert hasattr(Scheduler, "_try_schedule_encoder_inputs"), "Scheduler._try_schedule_encoder_inputs is missing in vLLM"


class WholePrompts(Scheduler):
    """Scheduler that lets a prompt wait for the next step instead of cutting it before an image."""

    def _try_schedule_encoder_inputs(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int, **options: Any
    ) -> Any:
        found = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, **options
        )
        return found if found[1] == num_new_tokens else ([], 0, encoder_compute_budget, [], [])
