"""Tell public IP addresses from private ones, by IANA's registries.

Only unicast addresses that IANA assigned to the internet are public. Python's `ipaddress.is_global` is not used: it
differs between the supported versions, and 3.11.7 says that 192.0.0.192 is public.

A public address may still lead into a private network by its owner's routing; that is not detected.

Sources, as of November 2026: iana.org/assignments/iana-ipv4-special-registry, iana-ipv6-special-registry,
ipv6-unicast-address-assignments, multicast-addresses.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata services
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform service, reachable from every machine there
        "169.254.0.0/16",  # link local, and most clouds' metadata services
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # deprecated 6to4 relays
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved addresses, and broadcast
    )
)
_PUBLIC_V4 = tuple(IPv4Network(network) for network in ("192.0.0.9/32", "192.0.0.10/32"))  # anycast: PCP, TURN

_UNICAST_V6 = IPv6Network("2000::/3")  # all addresses that are assigned for the internet (RFC 4291)
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001:1::1/128",  # anycast: PCP
        "2001:1::2/128",  # anycast: TURN
        "2001:1::3/128",  # anycast: DNS-SD
        "2001:3::/32",  # AMT
        "2001:4:112::/48",  # AS112
        "2001:20::/28",  # ORCHIDv2
        "2001:30::/28",  # drones
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet. An IPv4 address within an IPv6 one is judged by itself.

    Args:
        address: IPv4 or IPv6 address; a zone such as `%eth0` is ignored.

    Raises:
        ValueError: The text is not an IP address.

    >>> is_public("8.8.8.8"), is_public("192.0.0.192"), is_public("::ffff:127.0.0.1")
    (True, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return _is_in(ip, _PUBLIC_V4) or not _is_in(ip, _NOT_PUBLIC_V4)
    inner = _inner(ip)
    if inner is not None:
        return is_public(str(inner))
    return ip in _UNICAST_V6 and (_is_in(ip, _PUBLIC_V6) or not _is_in(ip, _NOT_PUBLIC_V6))


def _is_in(ip: IPv4Address | IPv6Address, networks: tuple[IPv4Network, ...] | tuple[IPv6Network, ...]) -> bool:
    return any(ip in network for network in networks)


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which an IPv6 address leads by mapping, NAT64, 6to4 or Teredo; else None."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
