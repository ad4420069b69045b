"""Colours that images mean, and colour profiles, from the formats' own rules."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])


TO_XYZ = {  # linear RGB to XYZ under D50, as the profiles have it
    "srgb": np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]),
    "p3": np.array([[0.5151, 0.292, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]),
    "adobe": np.array(
        [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
    ),
}


GAMMA = {"adobe": 563 / 256, "gray18": 460 / 256, "linear": 1.0}  # the others have the curve of sRGB


def decode_curve(profile, values):
    if profile in GAMMA:
        return values ** GAMMA[profile]
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear):
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_srgb(values, profile):
    """Values in [0, 1] of grey [..., 1] or RGB [..., 3] with a profile as sRGB in [0, 1]."""
    if profile is None or profile == "srgb":
        return values
    linear = decode_curve(profile, values)
    if values.shape[-1] == 3:
        linear = linear @ TO_XYZ[profile].T @ np.linalg.inv(TO_XYZ["srgb"]).T
    return encode_srgb(linear)


def lab_to_srgb(lab):
    """CIE L*a*b* under D50 as sRGB in [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    return encode_srgb(xyz @ np.linalg.inv(TO_XYZ["srgb"]).T)


# Colour profiles, version 2


def _fixed(*values):
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def _curve(profile):
    if profile in GAMMA:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * GAMMA[profile]))
    table = decode_curve(profile, np.linspace(0, 1, 1024))
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + np.rint(65535 * table).astype(">u2").tobytes()


def _profile(space, kind, connection, tags):
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {
        "desc": text,
        "cprt": b"text" + bytes(4) + b"none\0",
        "wtpt": b"XYZ " + bytes(4) + _fixed(*D50),
        **tags,
    }
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name.encode(), offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", offset + len(body), 0x02400000, kind, space, connection, b"acsp"
    )
    return header + _fixed(*D50) + bytes(48) + table + body


def rgb_profile(name):
    matrix = TO_XYZ[name]
    columns = {f"{c}XYZ": b"XYZ " + bytes(4) + _fixed(*matrix[:, i]) for i, c in enumerate("rgb")}
    return _profile(b"RGB ", b"mntr", b"XYZ ", columns | {f"{c}TRC": _curve(name) for c in "rgb"})


def gray_profile(name):
    return _profile(b"GRAY", b"mntr", b"XYZ ", {"kTRC": _curve(name)})


INKS = {  # Lab of a few mixtures of full inks; the others are black
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (55, -30, -40),
    (0, 1, 0, 0): (50, 60, 0),
    (0, 0, 1, 0): (90, -5, 70),
}


def cmyk_profile():
    """A table over the corners of the inks' cube."""
    corners = [INKS.get(tuple(index >> np.array([3, 2, 1, 0]) & 1), (0, 0, 0)) for index in range(16)]
    table = np.array([[round(L * 2.55), a + 128, b + 128] for L, a, b in corners], np.uint8).tobytes()
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += ramp * 4 + table + ramp * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {"A2B0": lut})


def profile_bytes(name):
    if name in {None, "broken"}:
        return None if name is None else b"no profile at all"
    if name == "cmyk":
        return cmyk_profile()
    return gray_profile(name) if name in {"gray18", "linear"} else rgb_profile(name)
