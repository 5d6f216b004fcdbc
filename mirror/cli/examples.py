"""The examples at the end of each command's help and in the manual page."""

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, str]] = {
    "serve": """\
  pps-mirror serve -c /etc/pps-mirror/config.toml
  PPS_MIRROR__UPSTREAM__URL=https://app.datarobot.com PPS_MIRROR__STORE__PATH=/srv/pps pps-mirror serve""",
    "check": """\
  pps-mirror check -c config.toml
  pps-mirror check --json | jq -r '.[] | select(.ok | not) | .message'""",
    "doctor": """\
  pps-mirror doctor -c /etc/pps-mirror/config.toml
  pps-mirror doctor -c config.toml > doctor.txt            to show to somebody that helps: it has no secrets
  DATAROBOT_API_TOKEN=... pps-mirror doctor                with a token: try the way to the image too
  pps-mirror doctor --json | jq -r '.[] | select(.ok | not) | .message, .advice'""",
    "pull": """\
  DATAROBOT_API_TOKEN=... pps-mirror pull -c config.toml
  pps-mirror pull && pps-mirror ls""",
    "get": """\
  pps-mirror get http://mirror:8080                into a file here, under the image's own name
  pps-mirror get --load http://mirror:8080         and load it into docker, podman or containerd
  pps-mirror get http://mirror:8080/mirror/v1/images/HASH/    a stored image by its hash, to go back to it
  pps-mirror get --load --loader ctr -o /var/tmp/pps.tar.gz https://mirror.example.com
  pps-mirror get --token-file ~/.datarobot-token --retry-for 8h -o pps.tar.gz https://app.datarobot.com""",
    "push": """\
  pps-mirror push harbor.example.com/datarobot/pps   after docker login harbor.example.com
  pps-mirror push harbor.example.com/datarobot/pps:7.0.0-r1736 3fa9c1
  pps-mirror push --ca-file /etc/ssl/site.pem registry.site:5000/pps:latest
  pps-mirror push --tls-verify=false registry.lab:5000/pps""",
    "ls": """\
  pps-mirror ls
  pps-mirror ls --json | jq -r '.[] | select(.pinned) | .hash'""",
    "verify": """\
  pps-mirror verify                                all images
  pps-mirror verify current
  pps-mirror verify 3fa9c1 --json""",
    "pin": """\
  pps-mirror pin current                           keep the version that the site has settled on
  pps-mirror pin 3fa9c1""",
    "unpin": """\
  pps-mirror unpin 3fa9c1""",
    "rm": """\
  pps-mirror rm 3fa9c1
  pps-mirror rm --force current""",
    "gc": """\
  pps-mirror gc --dry-run                          what would go
  pps-mirror gc""",
    "export": """\
  pps-mirror export current /media/stick                          where files may be large (exFAT, ext4, NTFS)
  pps-mirror export current /media/stick --split 4GiB             a stick with FAT32
  pps-mirror export 3f9a1c /srv/dvd --split 4GB                   volumes for DVDs
  pps-mirror export current /media/stick --sign ~/.ssh/id_ed25519""",
    "import": """\
  pps-mirror import /media/stick
  pps-mirror import /media/dvd1 /media/dvd2 /media/dvd3           volumes on several media
  pps-mirror import /media/stick --trust /etc/pps-mirror/signers  only if one of these signed it
  pps-mirror import image.tar.gz metadata.json                    what curl brought from DataRobot""",
    "hooks": """\
  pps-mirror hooks test chat -c config.toml        does the hook named chat get there, and what does it answer""",
    "demo": """\
  pps-mirror demo                                  until Ctrl-C
  pps-mirror demo --once --size 256MiB --rate 50MB/s""",
    "completion": """\
  pps-mirror completion bash > /etc/bash_completion.d/pps-mirror
  pps-mirror completion zsh > ~/.zfunc/_pps-mirror               (a directory of $fpath)
  pps-mirror completion fish > ~/.config/fish/completions/pps-mirror.fish""",
}
