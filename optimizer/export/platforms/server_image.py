"""The image of the server: what was measured, with the models and what their runtimes need."""

from __future__ import annotations

from optimizer.export.deployment import Deployment, ServerImage

REPOSITORY = "/models"
"""The model repository in the image."""

USER = 1000
"""Of the server: in NVIDIA's images `triton-server`; by number, so that Kubernetes can check it."""

_LAY_OUT = r"""
# The server of a Python package, in the places where NVIDIA's images have it.
RUN server="$(python3 -c 'import importlib.util as u, pathlib; \
print(pathlib.Path(u.find_spec("pytriton").origin).parent / "tritonserver")')" \
 && mkdir -p /opt/tritonserver/bin /opt/tritonserver/backends/python /opt/tritonserver/caches \
 && ln -s "$server/bin/tritonserver" /opt/tritonserver/bin/ \
 && ln -s "$server"/caches/* /opt/tritonserver/caches/ \
 && ln -s "$server"/backends/python/* \
          "$server/python_backend_stubs/@PYTHON@/triton_python_backend_stub" \
          /opt/tritonserver/backends/python/
ENV PATH=/opt/tritonserver/bin:$PATH
"""


def dockerfile(image: ServerImage, *steps: str, command: str) -> str:
    """The Dockerfile; beside it in the build context stands requirements.txt.

    Args:
        steps: the last ones, such as "COPY repository /models".
        command: that is started where no other is asked for.
    """
    lines = ["# Made for one configuration, as it was measured.", f"FROM {image.base}"]
    if image.packages:
        lines += [
            "",
            # An image's own Python may count as the system's; here there is no other system.
            "ENV PIP_BREAK_SYSTEM_PACKAGES=1",
            "COPY requirements.txt /opt/requirements.txt",
            "RUN python3 -m pip install --no-cache-dir -r /opt/requirements.txt",
        ]
    if not image.carries_server:
        lines += _LAY_OUT.replace("@PYTHON@", image.python).rstrip().split("\n")
    lines += ["", *steps, "", f'CMD ["{command}"]']
    return "\n".join(lines) + "\n"


def requirements(image: ServerImage) -> str:
    """What pip installs in the image."""
    return "".join(f"{package}\n" for package in image.packages)


def image_files(deployment: Deployment) -> dict[str, str]:
    """Dockerfile and requirements.txt of an image that holds `repository`, by path."""
    image = deployment.image
    # NVIDIA's images have this user.
    user = [] if image.carries_server else [f"RUN useradd --uid {USER} triton-server"]
    steps = (
        "# Triton needs no root. The models become its user's, who may not read them as they are.",
        *user,
        f"COPY --chown={USER}:{USER} repository {REPOSITORY}",
        f"USER {USER}:{USER}",
    )
    files = {"Dockerfile": dockerfile(image, *steps, command="tritonserver")}
    if image.packages:
        files["requirements.txt"] = requirements(image)
    return files
