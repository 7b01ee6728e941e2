"""Opens model.pt2, a torch.export program, with PyTorch on the CPU or on one GPU."""

import os

# Read when OpenMP starts: threads that spin while they wait take the cores from everything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.export.passes import move_to_device_pass


def open_session(directory, output, precision, threads, gpu):
    """Return run(inputs by name) -> output array. The precision lies in the program."""
    torch.set_num_threads(threads)
    program = torch.export.load(os.path.join(directory, "model.pt2"))
    device = "cpu"
    if gpu is not None:
        device = f"cuda:{gpu}"
        # FP32 is the unoptimised reference: nothing is rounded to TF32 behind its back.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        program = move_to_device_pass(program, device)
    module = program.module()

    def run(inputs):
        tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        with torch.inference_mode():
            return module(**tensors).float().cpu().numpy()

    return run
