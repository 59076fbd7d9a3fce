# etcd from Debian's packages (3.4.23), for places that cannot pull the official image (3.5.6 or newer; TESSERA_ETCD_IMAGE names it).
# Build context: what `make images` lays out (deploy/images): packages/*.deb. No network is needed.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
COPY packages /packages
RUN for each in /packages/*.deb; do dpkg -x "$each" /unpacked; done

FROM ${BASE_IMAGE}
RUN groupadd -g 10001 tessera && useradd -u 10001 -g 10001 -M -d /nonexistent -s /usr/sbin/nologin tessera && \
    install -d -o tessera -g tessera -m 0700 /var/lib/etcd
COPY --from=packages /unpacked/usr/bin/etcd /unpacked/usr/bin/etcdctl /usr/local/bin/
USER tessera
ENTRYPOINT ["etcd"]
