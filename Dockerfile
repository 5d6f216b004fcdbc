# The mirror as a container: not root, nothing written outside its volume and /tmp, so the root file system may be
# read-only and every capability dropped.
#
#   docker build -t pps-mirror .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -p 8080:8080 \
#     -v pps-mirror:/var/lib/pps-mirror -e PPS_MIRROR__UPSTREAM__URL=https://app.datarobot.com pps-mirror
#
# Configure it by PPS_MIRROR__SECTION__KEY variables, or mount a file and name it in PPS_MIRROR_CONFIG; the directory
# of a bind mount must belong to uid 10001. `--build-arg BASE=` takes any image with Python 3.11.2 or newer and its venv
# module, from a registry of your own for instance.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# Empty for the Internet; pip understands all three, such as PIP_INDEX_URL=https://pypi.example.com/simple.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/pps-mirror
WORKDIR /src
COPY . .
RUN /opt/pip/bin/pip --python /opt/pps-mirror/bin/python install -c constraints.txt .

FROM ${BASE}
ARG BASE
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="pps-mirror" \
      org.opencontainers.image.description="A caching mirror for DataRobot's Portable Prediction Server image" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
# The uid is a number so that Kubernetes can check runAsNonRoot; a new named volume takes over the directory's owner.
RUN install -d -o 10001 -g 10001 -m 0750 /var/lib/pps-mirror
COPY --from=build /opt/pps-mirror /opt/pps-mirror
ENV PATH=/opt/pps-mirror/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /var/lib/pps-mirror
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# The admin listener, over loopback and past any proxy; its port may be moved by its variable.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", "\
import http.client, os; \
admin = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PPS_MIRROR__ADMIN__PORT', 8081)), timeout=4); \
admin.request('GET', '/healthz'); \
raise SystemExit(admin.getresponse().status != 200)"]
ENTRYPOINT ["pps-mirror"]
CMD ["serve"]
