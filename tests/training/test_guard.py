"""What counts as a skipped step, and what as a spike."""

from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.config import GuardConfig
from hpcm_scale.training.guard import SPIKE_WARMUP, LossWatch


@given(
    st.lists(st.floats(0.9, 1.1), min_size=SPIKE_WARMUP, max_size=2 * SPIKE_WARMUP),
    st.floats(3, 1e6),
)
def test_a_spike_stands_out_and_hides_none_after(losses, height):
    watch = LossWatch(GuardConfig(spike_factor=2))
    assert [watch.take(loss, True) for loss in losses] == [None] * len(losses)
    assert watch.take(height, True) == "spike"
    assert watch.take(1.0, True) is None
    assert watch.take(height, True) == "spike"
    assert watch.spikes == 2


def test_skipped_steps_are_counted_in_all_and_in_a_row():
    watch = LossWatch(GuardConfig())
    assert watch.take(float("nan"), False) == "skip"
    assert watch.take(float("nan"), False) == "skip"
    assert (watch.skipped, watch.in_a_row) == (2, 2)
    watch.take(1.0, True)
    assert (watch.skipped, watch.in_a_row) == (2, 0)
    resumed = LossWatch(GuardConfig())
    resumed.load_state_dict(watch.state_dict())
    assert resumed.state_dict() == watch.state_dict()
