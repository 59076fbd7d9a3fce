# A runtime of flavour aten: torch. The node agent says what runs in it.
# Build context: what `make images` lays out (deploy/images): libraries/<layer>/*.whl, own/*.whl. No network is needed.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS core
COPY libraries/core /wheels
RUN python3 -m pip install --no-index --no-deps --no-cache-dir --no-warn-script-location --root-user-action ignore -q --target /opt/tessera/core /wheels/*.whl

FROM ${BASE_IMAGE} AS aten
COPY libraries/aten /wheels
RUN python3 -m pip install --no-index --no-deps --no-cache-dir --no-warn-script-location --root-user-action ignore -q --target /opt/tessera/aten /wheels/*.whl

FROM ${BASE_IMAGE} AS own
COPY own /wheels
RUN python3 -m pip install --no-index --no-deps --no-cache-dir --no-warn-script-location --root-user-action ignore -q --target /opt/tessera/own /wheels/*.whl

FROM ${BASE_IMAGE}
RUN groupadd -g 10001 tessera && useradd -u 10001 -g 10001 -M -d /nonexistent -s /usr/sbin/nologin tessera && \
    python3 -m venv --without-pip /opt/tessera && \
    for layer in own core ort bake agent aten import; do echo /opt/tessera/$layer; done > "$(/opt/tessera/bin/python -c 'import site; print(site.getsitepackages()[0])')/tessera.pth" && \
    install -d -m 0755 /run/tessera
ENV PATH=/opt/tessera/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GRPC_VERBOSITY=ERROR
COPY --from=core /opt/tessera/core /opt/tessera/core
COPY --from=aten /opt/tessera/aten /opt/tessera/aten
COPY --from=own /opt/tessera/own /opt/tessera/own
USER tessera
