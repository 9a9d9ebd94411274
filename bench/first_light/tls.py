"""Servers of NBD over TCP that want TLS and certificates, and the certificates for it."""

import socket
from pathlib import Path

from first_light.clients import run
from first_light.servers import VOLUME, Server, Taipand


def make_certificates(home):
    """A directory with an authority, a server on localhost and a client, as all of them read it."""
    home = Path(home)
    home.mkdir(parents=True, exist_ok=True)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def request(name, subject):
        files = ["-keyout", home / f"{name}-key.pem", "-out", home / f"{name}.csr"]
        run(["openssl", "req", *new_key, *files, "-subj", f"/CN={subject}"])

    def sign(name, extensions):
        (home / f"{name}.ext").write_text(extensions)
        files = ["-in", home / f"{name}.csr", "-out", home / f"{name}-cert.pem"]
        authority = ["-CA", home / "ca-cert.pem", "-CAkey", home / "ca-key.pem"]
        command = ["openssl", "x509", "-req", *files, *authority, "-CAcreateserial", "-days", "2"]
        run([*command, "-extfile", home / f"{name}.ext"])

    files = ["-keyout", home / "ca-key.pem", "-out", home / "ca-cert.pem"]
    run(["openssl", "req", "-x509", *new_key, *files, "-subj", "/CN=bench", "-days", "2"])
    request("server", "localhost")
    sign("server", "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")
    request("client", "bench")
    sign("client", "extendedKeyUsage=clientAuth\n")
    return home


def free_port():
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    """Whether somebody takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            return probe.recv(8) == b"NBDMAGIC"
    except OSError:
        return False


class TaipandWithTls(Taipand):
    """The daemon with TLS over TCP."""

    def __init__(self, binary, place, wal, volume_bytes, metrics_port, certificates, extra=()):
        self.port = free_port()
        extra = ["--tls-certificates", certificates, "--listen", f"127.0.0.1:{self.port}", *extra]
        super().__init__(binary, place, wal, volume_bytes, metrics_port, extra)
        self.command.remove("--no-listen")

    def tls_uri(self, certificates):
        return f"nbds://localhost:{self.port}/{VOLUME}?tls-certificates={certificates}"


class NbdkitWithTls(Server):
    """nbdkit with a file and the same certificates."""

    def __init__(self, home, disk, certificates):
        self.port = free_port()
        command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", self.port, "--tls=require"]
        command += [f"--tls-certificates={certificates}", "--tls-verify-peer", "file", disk]
        home = Path(home)
        super().__init__("nbdkit", command, home / "nbdkit.sock", home / "nbdkit.log")

    def accepts(self):
        return listens(self.port)

    def tls_uri(self, certificates):
        return f"nbds://localhost:{self.port}/?tls-certificates={certificates}"
