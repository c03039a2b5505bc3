"""weft.yaml: what it says with all defaults filled in, and every mistake at once with its place."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest

from weft.api import meshfile
from weft.api.files import load_mesh
from weft.api.meshfile import Mesh, mesh_name, parse_mesh
from weft.errors import InvalidConfiguration, UsageError
from weft.model import Published

REPOSITORY = Path(__file__).parent.parent.parent


def mesh(text: str, directory_name: str = "shop") -> Mesh:
    result = parse_mesh("weft.yaml", dedent(text), directory_name=directory_name)
    assert not result.problems, [str(problem) for problem in result.problems]
    assert result.mesh is not None
    return result.mesh


def mistakes(text: str) -> list[tuple[int, int, str, str, str]]:
    result = parse_mesh("weft.yaml", dedent(text), directory_name="shop")
    assert result.mesh is None
    return [
        (item.origin.line, item.origin.column, item.path, item.code, f"{item.message} {item.remedy}")
        for item in result.problems
    ]


def test_a_whole_file_is_read() -> None:
    read = mesh("""\
        mesh: bookinfo
        namespace: books
        trust_domain: example.org
        proxy: {concurrency: 2, kind: weft-proxy}
        addresses: {workloads: 10.9.0.0/16, services: 240.1.0.0/16}
        programs:
          ratings:
            command: ./ratings --port 9080
          reviews-v1:
            service: reviews
            version: v2
            ports: [9080, {number: 80, protocol: GRPC, name: grpc, target_port: 8080}]
            command: [python3, reviews.py, "1"]
            directory: ..
            environment: {KEY: value, PORT: 9080}
            replicas: 3
            depends_on: [ratings]
            restart: always
            host_ports: [5432]
            labels: {team: books}
            service_account: bookinfo-reviews
            ready: {timeout: 5s}
        gateways:
          ingressgateway:
            labels: {istio: ingressgateway, zone: a}
            publish: ["127.0.0.1:0:8080", "8443:443", 80, "[::1]:81:82"]
        apply: [networking/*.yaml, more]
        notes: Open http://localhost:{ingressgateway:8080}/
        """)
    assert read.mesh == "bookinfo"
    assert read.namespace == "books"
    assert read.trust_domain == "example.org"
    assert read.proxy.concurrency == 2
    assert read.addresses.workloads == "10.9.0.0/16"
    reviews = read.programs["reviews-v1"]
    assert (reviews.service, reviews.version, reviews.service_account) == ("reviews", "v2", "bookinfo-reviews")
    assert [(port.number, port.protocol, port.name, port.target_port) for port in reviews.ports] == [
        (9080, "HTTP", "", 0),
        (80, "GRPC", "grpc", 8080),
    ]
    assert reviews.command == ("python3", "reviews.py", "1")
    assert reviews.environment == {"KEY": "value", "PORT": "9080"}
    assert (reviews.replicas, reviews.depends_on, reviews.restart) == (3, ("ratings",), "always")
    assert reviews.host_ports == (5432,)
    assert reviews.ready.timeout == timedelta(seconds=5)
    assert read.programs["ratings"].command == ("/bin/sh", "-c", "./ratings --port 9080")
    assert read.gateways["ingressgateway"].publish == (
        Published(8080, "127.0.0.1", 0),
        Published(443, "127.0.0.1", 8443),
        Published(80, "127.0.0.1", 0),
        Published(82, "::1", 81),
    )
    assert read.apply == ("networking/*.yaml", "more")


def test_defaults_are_filled_in() -> None:
    read = mesh("programs: {cart: {command: ./cart}}\ngateways: {edge: {}}\n", "My Shop (2)")
    assert read.mesh == "my-shop-2"
    cart = read.programs["cart"]
    assert (cart.service, cart.version, cart.service_account) == ("cart", "v1", "cart")
    assert (cart.replicas, cart.restart, cart.directory, cart.ports) == (1, "on-failure", ".", ())
    assert cart.ready.timeout == timedelta(seconds=30)
    assert read.gateways["edge"].labels == {"istio": "edge"}
    assert read.namespace == "default"
    assert read.proxy.concurrency == 1


def test_a_program_has_the_meshs_proxy_where_it_says_nothing_else() -> None:
    read = mesh("""\
        proxy: {kind: envoy, concurrency: 3}
        programs:
          as-the-mesh: {command: x}
          by-name: {command: x, proxy: weft-proxy}
          threads: {command: x, proxy: {concurrency: 2}}
        gateways:
          edge: {proxy: {kind: weft-proxy, concurrency: 1}}
        """)
    proxies = {name: read.proxy_of(entry) for name, entry in {**read.programs, **read.gateways}.items()}
    assert {name: (proxy.kind, proxy.concurrency) for name, proxy in proxies.items()} == {
        "as-the-mesh": ("envoy", 3),
        "by-name": ("weft-proxy", 3),
        "threads": ("envoy", 2),
        "edge": ("weft-proxy", 1),
    }
    assert mesh("proxy: envoy\nprograms: {a: {command: x}}\n").proxy.kind == "envoy"


@pytest.mark.parametrize(
    ("directory", "name"),
    [("bookinfo", "bookinfo"), ("My_Shop", "my-shop"), ("--", "mesh"), ("", "mesh"), ("a" * 80, "a" * 63)],
)
def test_a_directory_gives_the_mesh_its_name(directory: str, name: str) -> None:
    assert mesh_name(directory) == name


@pytest.mark.parametrize("version", ["1.10", "v1.2", "2024_06", "Canary"])
def test_a_version_is_whatever_a_label_can_say(version: str) -> None:
    """Subsets of Istio's API look for such labels; a number in quotes is what the remedy for one without them says."""
    result = parse_mesh("weft.yaml", f'{P}, version: "{version}"}}}}', directory_name="x")
    assert result.mesh is not None
    assert result.mesh.programs["a"].version == version


def test_programs_of_one_service_make_it_up_together() -> None:
    read = mesh("""\
        programs:
          a: {service: s, version: v1, command: x, ports: [80]}
          b: {service: s, version: v2, command: x, ports: [80, {number: 81, protocol: TCP}]}
          c: {command: x}
        """)
    assert read.services() == [
        {
            "name": "s",
            "namespace": "default",
            "ports": [
                {"number": 80, "protocol": "HTTP", "name": "", "target_port": 0},
                {"number": 81, "protocol": "TCP", "name": "", "target_port": 0},
            ],
            "versions": ["v1", "v2"],
        }
    ]


P = "programs: {a: {command: x"
MISTAKES = {
    # the file, (line, column, path, code), words
    "empty": ("# nothing\n", (1, 1, "(document)", "invalid"), "Describe `programs`"),
    "two documents": ("mesh: a\n---\nmesh: b\n", (3, 1, "(document)", "invalid"), "a second begins here"),
    "no mapping": ("[a]\n", (1, 1, "(document)", "wrong-type"), "a mapping"),
    "unknown key": ("program: {}\n", (1, 1, "program", "unknown-field"), "Did you mean `programs`?"),
    "unknown key of a program": (
        f"{P}, enviroment: {{}}}}}}",
        (1, 28, "programs.a.enviroment", "unknown-field"),
        "`environment`",
    ),
    "docker's spelling": (
        f"{P}, depends-on: [b]}}}}",
        (1, 28, "programs.a.depends-on", "unknown-field"),
        "`depends_on`",
    ),
    "no command": (
        "programs: {a: {ports: [1]}}",
        (1, 12, "programs.a.command", "missing-field"),
        "`command` is missing",
    ),
    "empty command": ("programs: {a: {command: []}}", (1, 25, "programs.a.command", "missing-field"), "is empty"),
    "blank command": ('programs: {a: {command: " "}}', (1, 25, "programs.a.command", "missing-field"), "is empty"),
    "number in a command": (
        "programs: {a: {command: [serve, 80]}}",
        (1, 33, "programs.a.command[1]", "wrong-type"),
        'Put it in quotes: "80".',
    ),
    "program's name": ("programs: {A_b: {command: x}}", (1, 12, "programs.A_b", "bad-name"), "`A_b`"),
    "instance's name": (
        f"programs: {{{'a' * 62}: {{command: x}}}}",
        (1, 12, f"programs.{'a' * 62}", "bad-name"),
        "`" + "a" * 62 + "-0` would have a name of 64 letters, of at most 63. Choose a name of at most 61 letters.",
    ),
    "name of the last of many instances": (
        f"programs: {{{'a' * 61}: {{command: x, replicas: 11}}}}",
        (1, 12, f"programs.{'a' * 61}", "bad-name"),
        "Choose a name of at most 60 letters.",
    ),
    "name of a gateway's proxy": (
        f"gateways: {{{'a' * 62}: {{}}}}",
        (1, 12, f"gateways.{'a' * 62}", "bad-name"),
        "Choose a name of at most 61 letters.",
    ),
    "mesh's name": ("mesh: Book_Info\n", (1, 7, "mesh", "bad-name"), "`Book_Info`"),
    "namespace": ("namespace: a.b\n", (1, 12, "namespace", "bad-name"), "`a.b`"),
    "version that became a number": (f"{P}, version: 1.10}}}}", (1, 37, "programs.a.version", "wrong-type"), '"1.10"'),
    "version": (f"{P}, version: v/1}}}}", (1, 37, "programs.a.version", "bad-name"), "`v/1`"),
    "empty version": (f'{P}, version: ""}}}}', (1, 37, "programs.a.version", "bad-name"), "is empty"),
    "port in words": (f"{P}, ports: [http]}}}}", (1, 36, "programs.a.ports[0]", "wrong-type"), "a port such as 9080"),
    "port out of range": (f"{P}, ports: [0]}}}}", (1, 36, "programs.a.ports[0].number", "bad-port"), "1 to 65535"),
    "port twice": (
        f"{P}, ports: [80, {{number: 80}}]}}}}",
        (1, 40, "programs.a.ports[1]", "duplicate-port"),
        "line 1, column 36",
    ),
    "one port of the program for two of the service": (
        f"{P}, ports: [{{number: 80, target_port: 8080}}, 8080]}}}}",
        (1, 69, "programs.a.ports[1]", "duplicate-port"),
        "the program's port 8080 is port 80 of the service already, at line 1, column 36",
    ),
    "one port of the program for two of the service, named": (
        f"{P}, ports: [8080, {{number: 80, target_port: 8080}}]}}}}",
        (1, 68, "programs.a.ports[1].target_port", "duplicate-port"),
        "the program's port 8080 is port 8080 of the service already, at line 1, column 36",
    ),
    "port's protocol": (
        f"{P}, ports: [{{number: 1, protocol: UDP}}]}}}}",
        (1, 58, "programs.a.ports[0].protocol", "unknown-value"),
        "one of HTTP, HTTP2, GRPC, HTTPS, TLS, TCP",
    ),
    "camel case": (
        f"{P}, ports: [{{number: 1, targetPort: 2}}]}}}}",
        (1, 48, "programs.a.ports[0].targetPort", "unknown-field"),
        "`target_port`",
    ),
    "variable that is true": (
        f"{P}, environment: {{A: true}}}}}}",
        (1, 45, "programs.a.environment.A", "wrong-type"),
        "quotes",
    ),
    "variable without a value": (
        f"{P}, environment: {{A: }}}}}}",
        (1, 42, "programs.a.environment.A", "wrong-type"),
        "`null`",
    ),
    "variable's name": (
        f"{P}, environment: {{A=B: x}}}}}}",
        (1, 42, "programs.a.environment.A=B", "bad-name"),
        "no `=`",
    ),
    "environment as a list": (
        f"{P}, environment: [A=B]}}}}",
        (1, 41, "programs.a.environment", "wrong-type"),
        "a mapping",
    ),
    "replicas": (f"{P}, replicas: 101}}}}", (1, 38, "programs.a.replicas", "out-of-range"), "at most 100"),
    "restart": (f"{P}, restart: onfailure}}}}", (1, 37, "programs.a.restart", "unknown-value"), "`on-failure`"),
    "timeout": (f"{P}, ready: {{timeout: 30}}}}}}", (1, 45, "programs.a.ready.timeout", "bad-duration"), "`30s`"),
    "label that is said elsewhere": (
        f"{P}, labels: {{version: v2}}}}}}",
        (1, 37, "programs.a.labels.version", "conflict"),
        "`version`",
    ),
    "unknown dependency": (f"{P}, depends_on: [b]}}}}", (1, 41, "programs.a.depends_on[0]", "unknown-program"), "`b`"),
    "dependency on itself": (
        f"{P}, depends_on: [a]}}}}",
        (1, 41, "programs.a.depends_on[0]", "dependency-cycle"),
        "itself",
    ),
    "dependency on nothing": (
        f"{P}, depends_on: [b]}}, b: {{command: x, replicas: 0}}}}",
        (1, 41, "programs.a.depends_on[0]", "dependency-cycle"),
        "never becomes ready",
    ),
    "circle": (
        f"{P}, depends_on: [c]}}, b: {{command: x, depends_on: [a]}}, c: {{command: x, depends_on: [b]}}}}",
        (1, 75, "programs.b.depends_on[0]", "dependency-cycle"),
        "a -> c -> b -> a",
    ),
    "two protocols of one port": (
        f"{P}, service: s, ports: [80]}}, b: {{command: x, service: s, ports: [{{number: 80, protocol: TCP}}]}}}}",
        (1, 90, "programs.b.ports[0]", "conflict"),
        "speaks TCP here and HTTP in `a`",
    ),
    "two targets of one port": (
        f"{P}, service: s, ports: [80]}}, b: {{command: x, service: s, ports: [{{number: 80, target_port: 81}}]}}}}",
        (1, 90, "programs.b.ports[0]", "conflict"),
        "leads to 81 here and to 80 in `a`",
    ),
    "one name for two ports": (
        f"{P}, service: s, ports: [{{number: 80, name: p}}]}},"
        " b: {command: x, service: s, ports: [{number: 81, name: p}]}}",
        (1, 128, "programs.b.ports[0].name", "conflict"),
        "is port 80 in `a`",
    ),
    "capability": (
        f"{P}, capabilities: [CHOWM]}}}}",
        (1, 43, "programs.a.capabilities[0]", "bad-capability"),
        "`CHOWM` is no capability",
    ),
    "capability that is never given": (
        f"{P}, capabilities: [cap_net_admin]}}}}",
        (1, 43, "programs.a.capabilities[0]", "bad-capability"),
        "NET_ADMIN is never given",
    ),
    "capability twice": (
        f"{P}, capabilities: [CHOWN, CAP_chown]}}}}",
        (1, 50, "programs.a.capabilities[1]", "duplicate-entry"),
        "already",
    ),
    "host port": (f"{P}, host_ports: [70000]}}}}", (1, 41, "programs.a.host_ports[0]", "bad-port"), "not 70000"),
    "host port that is the program's own": (
        f"{P}, ports: [80, {{number: 81, target_port: 5432}}], host_ports: [81, 5432]}}}}",
        (1, 91, "programs.a.host_ports[1]", "conflict"),
        "listens, at line 1, column 40",
    ),
    "port that is asked for names": (
        f"{P}, ports: [53]}}}}",
        (1, 36, "programs.a.ports[0].number", "bad-port"),
        "programs ask for names",
    ),
    "port of weft's own": (
        f"{P}, ports: [{{number: 80, target_port: 15053}}]}}}}",
        (1, 62, "programs.a.ports[0].target_port", "bad-port"),
        "weft's own",
    ),
    "host port that is asked for names": (
        f"{P}, host_ports: [53]}}}}",
        (1, 41, "programs.a.host_ports[0]", "bad-port"),
        "the host's resolvers are asked",
    ),
    "port of the HTTP proxy": (
        f"interception: explicit\n{P}, ports: [15001]}}}}",
        (2, 36, "programs.a.ports[0].number", "bad-port"),
        "weft's own",
    ),
    "proxy": ("proxy: {kind: nginx}\n", (1, 15, "proxy.kind", "unknown-value"), "weft-proxy"),
    "proxy as a word": ("proxy: nginx\n", (1, 8, "proxy", "wrong-type"), "`envoy`"),
    "proxy as a number": ("proxy: 3\n", (1, 8, "proxy", "wrong-type"), "weft-proxy"),
    "threads": ("proxy: {concurrency: 0}\n", (1, 22, "proxy.concurrency", "out-of-range"), "at least 1"),
    "address range": ("addresses: {workloads: 10.0.0.0/33}\n", (1, 24, "addresses.workloads", "bad-range"), "no range"),
    "ranges that overlap": (
        "addresses: {workloads: 10.0.0.0/8, services: 10.1.0.0/16}\n",
        (1, 46, "addresses.services", "bad-range"),
        "overlap",
    ),
    "gateway named as a program": (
        f"{P}}}}}\ngateways: {{a: {{}}}}\n",
        (2, 12, "gateways.a", "conflict"),
        "the program `a` goes by this name",
    ),
    "published without a port": (
        'gateways: {g: {publish: ["a:b"]}}\n',
        (1, 26, "gateways.g.publish[0]", "wrong-type"),
        "address:host port:gateway port",
    ),
    "published at no address": (
        'gateways: {g: {publish: ["300.1.1.1:1:1"]}}\n',
        (1, 26, "gateways.g.publish[0]", "bad-address"),
        "`300.1.1.1`",
    ),
    "published twice": (
        'gateways: {g: {publish: ["80:1"]}, h: {publish: ["80:2"]}}\n',
        (1, 50, "gateways.h.publish[0]", "duplicate-port"),
        "already published by `g`",
    ),
    "applied twice": ("apply: [a, a]\n", (1, 12, "apply[1]", "duplicate-file"), "line 1, column 9"),
    "notes": ("notes: see {g:80}\n", (1, 8, "notes", "unknown-port"), "no gateway `g` publishes port 80"),
    "duplicate key": ("mesh: a\nmesh: b\n", (2, 1, "mesh", "duplicate-key"), "line 1, column 1"),
}


@pytest.mark.parametrize(("text", "expected", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_with_its_place(text: str, expected: tuple[int, int, str, str], words: str) -> None:
    found = mistakes(text)
    assert [item[:4] for item in found] == [expected]
    assert words in found[0][4]


@pytest.mark.parametrize("ports", ["ports: [53, 15053]", "ports: [5432], host_ports: [5432, 53]"])
def test_explicit_mode_has_no_ports_of_its_own_in_the_way(ports: str) -> None:
    """A program's localhost is the host's there; the mode is the file's, or that of the command line."""
    text = f"{P}, {ports}}}}}\n"
    assert mesh(f"interception: explicit\n{text}")
    assert parse_mesh("weft.yaml", text, directory_name="shop").problems
    assert not parse_mesh("weft.yaml", text, directory_name="shop", interception="explicit").problems
    explicit = f"interception: explicit\n{text}"
    assert parse_mesh("weft.yaml", explicit, directory_name="shop", interception="auto").problems


def test_all_mistakes_are_said_at_once() -> None:
    found = mistakes("""\
        mesh: bookinfo
        proxy: {concurency: 2, kind: nginx}
        programs:
          reviews:
            ports: [9080, {number: 9081, protocol: http}, "90"]
            command: [python3, 3]
            depends_on: [rating]
            restart: on-failur
        gateways:
          ingressgateway:
            publish: ["8080:99999", "a:b"]
        """)
    assert [item[:2] for item in found] == [
        (2, 9), (2, 30), (5, 44), (5, 51), (6, 24), (7, 18), (8, 14), (11, 15), (11, 29)
    ]  # fmt: skip


def test_what_follows_from_a_mistake_is_not_said_and_what_does_not_is() -> None:
    """A program that cannot be read exists; a name that is wrong is wrong whatever else is."""
    assert [item[2] for item in mistakes("programs: {a: 7, b: {command: x, depends_on: [a]}}")] == ["programs.a"]
    assert [item[2] for item in mistakes("programs: {a: {comand: x}}")] == ["programs.a.comand"]
    assert [item[2] for item in mistakes("programs: {a_b: {command: x, replicas: -1}}")] == [
        "programs.a_b",
        "programs.a_b.replicas",
    ]
    assert [item[2] for item in mistakes('gateways: {g: {publsh: [80]}}\nnotes: "{g:80}"')] == ["gateways.g.publsh"]


def test_files_that_are_missing_are_said_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "here.yaml").write_text("")
    (tmp_path / "weft.yaml").write_text(
        "apply: [here.yaml, gone.yaml, 'no/*.yaml', empty]\nprograms: {a: {command: x, directory: nowhere}}\n"
        "follow: here.yaml\n"
    )
    with pytest.raises(InvalidConfiguration) as caught:
        load_mesh(tmp_path)
    assert [(str(item.origin).removeprefix(f"{tmp_path}/"), item.message) for item in caught.value.problems] == [
        ("weft.yaml:1:20", "`gone.yaml` does not exist."),
        ("weft.yaml:1:31", "`no/*.yaml` matches no file."),
        ("weft.yaml:1:44", "`empty` holds no file that ends in .yaml, .yml, .json."),
        ("weft.yaml:2:39", "`nowhere` is no directory."),
        ("weft.yaml:3:9", "`here.yaml` is no directory."),
    ]


def test_a_mesh_is_loaded_from_its_directory_or_its_file(tmp_path: Path) -> None:
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "weft.yaml").write_text("programs: {a: {command: x}}\n")
    for path in (directory, directory / "weft.yaml"):
        loaded = load_mesh(path)
        assert (loaded.mesh.mesh, loaded.directory, loaded.warnings) == ("shop", directory, [])
    with pytest.raises(UsageError, match=r"weft\.yaml"):
        load_mesh(tmp_path)


def test_the_bookinfo_example_is_right() -> None:
    loaded = load_mesh(REPOSITORY / "examples" / "bookinfo")
    assert loaded.warnings == []
    services = {program.service for program in loaded.mesh.programs.values()}
    assert services == {"productpage", "details", "ratings", "reviews"}


def test_each_example_of_the_reference_is_right() -> None:
    page = (REPOSITORY / "docs" / "reference" / "weft-yaml.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) > 10
    for example in examples:
        assert mesh(example)


def test_the_reference_names_each_key() -> None:
    page = (REPOSITORY / "docs" / "reference" / "weft-yaml.md").read_text()
    for model, prefix in _models():
        for name in model.model_fields:
            assert f"`{prefix}{name}`" in page, f"{prefix}{name}"


def _models() -> list[tuple[type[meshfile.Entry], str]]:
    return [
        (meshfile.Mesh, ""),
        (meshfile.ProxySettings, "proxy."),
        (meshfile.Addresses, "addresses."),
        (meshfile.Program, ""),
        (meshfile.Port, "ports[]."),
        (meshfile.Ready, "ready."),
        (meshfile.GatewayProgram, ""),
    ]
