# supcon_tf for a CPU, or for NVIDIA GPUs with EXTRAS=[cuda]. In the root of the checkout:
#   docker build -t supcon_tf .
#   docker build -t supcon_tf:cuda --build-arg EXTRAS=[cuda] .
# Runs, and the data that TensorFlow Datasets downloads, are kept in the current folder:
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" supcon_tf --mode=pretrain,linear,eval
#   docker run --rm --gpus=all -u "$(id -u):$(id -g)" -v "$PWD:/data" supcon_tf:cuda --data_dir=my_images
# tpu/Dockerfile is the image for Cloud TPU.
FROM python:3.12-slim

ARG EXTRAS=""
WORKDIR /supcon_tf
COPY setup.py pyproject.toml README.md LICENSE ./
COPY supcon_tf supcon_tf
COPY flags flags
# The versions of the dependencies are those that setup.py allows.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".${EXTRAS}"

# Any user may run it: what libraries write beside the run goes to a folder that all can write.
ENV HOME=/tmp TFDS_DATA_DIR=/data/tfds
WORKDIR /data
RUN useradd --uid 1000 --no-create-home supcon_tf && chown supcon_tf /data
USER 1000
# The exec form passes SIGTERM on to the command, which then saves.
ENTRYPOINT ["supcon-tf"]
CMD ["--help"]
