"""OpenStack Swift with its s3api, from Debian's packages: proxy, account, container and object server, memcached.

It needs root, and a file system with user attributes.
"""

from pathlib import Path

from tests.support.needs import needs
from tests.support.s3.server import S3Server

INSTALL = (
    "apt-get install --no-install-recommends swift-proxy swift-account swift-container swift-object memcached "
    "python3-swift"
)

_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
user = root
swift_dir = {root}/etc
workers = 0
log_level = WARNING
log_statsd_host =
"""

_PROXY = (
    _COMMON
    + """bind_port = {port}
{tls}
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache listing_formats bulk s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
object_chunk_size = 1048576
client_chunk_size = 1048576
conn_timeout = 5
node_timeout = 30
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
dns_compliant_bucket_names = true
allow_multipart_uploads = true
max_upload_part_num = 10000
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
"""
)

_STORAGE = (
    _COMMON
    + """bind_port = {port}
devices = {root}/srv
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
recon_cache_path = {root}/cache
container_update_timeout = 10
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
disk_chunk_size = 1048576
network_chunk_size = 1048576
"""
)

_STORAGE_KINDS = ("account", "container", "object")


class Swift(S3Server):
    """OpenStack Swift: strict, old, without conditional writes."""

    name = "OpenStack Swift s3api"
    front = "proxy"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, [*_STORAGE_KINDS, "memcached"])
        self.access_key, self.secret_key = "test:tester", "a-secret-key-of-a-tester"
        for name in ("etc", "cache", "srv/sda1"):
            (directory / name).mkdir(parents=True)
        self._etc = directory / "etc"
        self._made = False

    def launch(self) -> None:
        """See `S3Server.launch`."""
        program = needs("swift-proxy-server", INSTALL, root=True)
        if not self._made:
            self._configure()
            self._made = True
        port = self.ports["memcached"]
        memcached = needs("memcached", INSTALL)
        self.spawn("memcached", memcached, "-u", "root", "-l", "127.0.0.1", "-U", 0, "-m", 64, "-p", port, "-c", 256)
        for kind in _STORAGE_KINDS:
            self.spawn(kind, f"swift-{kind}-server", self._etc / f"{kind}-server.conf")
        self.spawn("proxytls", program, self._etc / "proxy-tls.conf")
        self.spawn("proxy", program, self._etc / "proxy-server.conf")

    def _configure(self) -> None:
        (self._etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = suffix\nswift_hash_path_prefix = prefix\n"
            "[swift-constraints]\nmax_header_size = 16384\n"
        )
        values = {"root": self.directory, "secret": self.secret_key, "memcached": self.ports["memcached"]}
        tls = f"cert_file = {self.ca_file}\nkey_file = {self.key_file}"
        (self._etc / "proxy-server.conf").write_text(_PROXY.format(port=self.ports["s3"], tls="", **values))
        (self._etc / "proxy-tls.conf").write_text(_PROXY.format(port=self.ports["https"], tls=tls, **values))
        for kind in _STORAGE_KINDS:
            port = self.ports[kind]
            (self._etc / f"{kind}-server.conf").write_text(_STORAGE.format(root=self.directory, port=port, kind=kind))
            builder = self._etc / f"{kind}.builder"
            self.run("swift-ring-builder", builder, "create", 4, 1, 1)
            self.run("swift-ring-builder", builder, "add", f"r1z1-127.0.0.1:{port}/sda1", 1)
            self.run("swift-ring-builder", builder, "rebalance", 1)
