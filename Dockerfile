# diffleak on the CPU, by the steps of docs/install.md ("Container").
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /src
COPY constraints.txt ./
RUN pip install torch -c constraints.txt --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install .
RUN pip install '.[text]'
RUN diffleak doctor

RUN useradd diffleak
USER diffleak
WORKDIR /work
ENTRYPOINT ["diffleak"]
CMD ["--help"]
