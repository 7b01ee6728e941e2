"""Opens model.pt2, a torch.export program, with PyTorch on the CPU."""

import os

# Read when OpenMP starts: threads that spin while they wait take the cores from everything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch


def open_session(directory, output, precision, threads):
    """Return run(inputs by name) -> output array. The precision lies in the program."""
    torch.set_num_threads(threads)
    program = torch.export.load(os.path.join(directory, "model.pt2")).module()

    def run(inputs):
        with torch.inference_mode():
            answer = program(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return answer.float().numpy()

    return run
