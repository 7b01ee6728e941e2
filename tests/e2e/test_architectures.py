"""`transformers` classes: exported with the outputs of the model itself, or refused."""

from __future__ import annotations

import pytest

from optimizer.errors import BuildFailure
from tests.e2e.architectures import ARCHITECTURES, Architecture

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, its exporter and transformers
    pytest.mark.timeout(300),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=[f"{a.class_name}-{n}" for n, a in enumerate(ARCHITECTURES)]
)
def test_an_architecture_is_exported_or_refused(architecture: Architecture) -> None:
    if not architecture.refusal:
        assert architecture.export()
        return
    with pytest.raises(BuildFailure) as raised:
        architecture.export()
    assert architecture.class_name in str(raised.value)
    assert architecture.refusal in str(raised.value)
