"""Data: the teacher–student problem of Appendix J.1, and what is refused."""

import pytest
import torch

import mirrorode as mo


def test_teacher_student():
    data = mo.teacher_student(samples=200, teachers=3, seed=42)
    torch.testing.assert_close(data.x.norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert set(data.y.tolist()) == {-1.0, 1.0}
    assert data.x.dtype == torch.float64
    output, directions = data.teacher[:, 0], data.teacher[:, 1:]
    torch.testing.assert_close(output.abs() * directions.norm(dim=1), torch.ones(3).double())
    labels = torch.relu(data.x @ directions.T) @ output
    assert torch.equal(labels > 0, data.y > 0)


def test_seeded_and_both_labels():
    assert torch.equal(mo.teacher_student(seed=7).y, mo.teacher_student(seed=7).y)
    assert not torch.equal(mo.teacher_student(seed=7).x, mo.teacher_student(seed=8).x)
    for seed in range(40):
        assert len(mo.teacher_student(samples=20, seed=seed).y.unique()) == 2


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (
            [[1.0, float("nan")]],
            [1.0],
            "`x` must be finite, but is NaN or infinite in 1 of 2 places",
        ),
        ([[1.0], [2.0]], [1.0, 0.0], "`y` must hold only +1 and -1, but is [0.0] in 1 places"),
        ([[1.0], [2.0]], [1.0], "`y` must have shape (2,), but is (1,)"),
        ([1.0, 2.0], [1.0, 1.0], "`x` must have shape (samples, dim), but is (2,)"),
    ],
)
def test_bad_data(x, y, sentence):
    with pytest.raises(mo.InputError) as error:
        mo.Dataset(torch.tensor(x), torch.tensor(y))
    assert str(error.value) == sentence


def test_bad_sizes():
    with pytest.raises(mo.InputError, match="`samples` must be an integer from 2 to"):
        mo.teacher_student(samples=1)
    with pytest.raises(mo.InputError, match="`teachers` must label the samples both ways"):
        mo.teacher_student(samples=2, teachers=1, seed=0, attempts=0)
