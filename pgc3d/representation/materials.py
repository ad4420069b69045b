"""The family of materials that representations of surfaces can have."""

from typing import TypeAlias

from pgc3d.representation.headlight import HeadlightConfig
from pgc3d.representation.pbr import PbrConfig

MaterialConfig: TypeAlias = HeadlightConfig | PbrConfig
