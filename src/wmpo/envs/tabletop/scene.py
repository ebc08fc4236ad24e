"""The table, its objects and the gripper, as MuJoCo models made of boxes only.

Lengths in metres, x to the right, y away from the front camera, z up; the table top is z = 0.
Only boxes: both renderers draw them exactly, and their contacts are cheap and robust.
"""

from __future__ import annotations

from functools import lru_cache

import mujoco

from wmpo.envs.tabletop.settings import (
    BLOCKS,
    CUBE,
    OPENING,
    PEG,
    PEG_HEIGHT,
    REACH,
    RING_HALF_HEIGHT,
    RING_INNER,
    RING_OUTER,
    SEEN_ONLY,
    TRAY,
    TRAY_HEIGHT,
    UNSEEN,
    ZONE,
    Disruption,
)

Colour = tuple[float, float, float]
RED, BLUE, GREEN = (0.86, 0.10, 0.10), (0.10, 0.25, 0.88), (0.15, 0.72, 0.25)
YELLOW, ORANGE, PURPLE = (0.96, 0.80, 0.15), (0.95, 0.50, 0.08), (0.50, 0.15, 0.62)
TABLE, FLOOR, STEEL, SHADE = (0.87, 0.85, 0.81), (0.55, 0.57, 0.60), (0.13, 0.13, 0.16), (0.52, 0.50, 0.49)


def _box(
    position: tuple[float, float, float],
    size: tuple[float, float, float],
    colour: Colour,
    *,
    solid: bool = True,
    extra: str = "",
) -> str:
    """One box: centre, half sizes and RGB; a box that is not solid is only seen."""
    numbers = " ".join(f"{value:.5g}" for value in position)
    sizes = " ".join(f"{value:.5g}" for value in size)
    rgba = " ".join(f"{value:.3g}" for value in colour)
    solidity = "" if solid else f' contype="0" conaffinity="0" mass="0" group="{SEEN_ONLY}"'
    return f'<geom type="box" pos="{numbers}" size="{sizes}" rgba="{rgba} 1"{solidity} {extra}/>'


def _cube(name: str, colour: Colour, patterned: float) -> str:
    geoms = _box((0, 0, 0), (CUBE, CUBE, CUBE), colour, extra=f'name="{name}" mass="0.08"')
    if patterned:  # a cross of another shade on every face
        pale = _mixed(colour, (1.0, 1.0, 1.0), 0.45 * patterned)
        for axis in range(3):
            size = [0.008, 0.008, 0.008]
            size[axis] = CUBE + 0.0006
            size[(axis + 1) % 3] = CUBE + 0.0003
            geoms += _box((0, 0, 0), (size[0], size[1], size[2]), pale, solid=False)
    return f'<body name="{name}"><freejoint/>{geoms}</body>'


def _ring() -> str:
    middle, wall = (RING_INNER + RING_OUTER) / 2, (RING_OUTER - RING_INNER) / 2
    geoms = ""
    for sign in (-1, 1):
        for position, size in (
            ((sign * middle, 0, 0), (wall, RING_OUTER, RING_HALF_HEIGHT)),
            ((0, sign * middle, 0), (RING_INNER, wall, RING_HALF_HEIGHT)),
        ):
            geoms += _box(position, size, ORANGE, extra='mass="0.02"')
    return f'<body name="ring"><freejoint/>{geoms}</body>'


def _gripper() -> str:
    """Three slides and two fingers. The square that follows it on the table is a drop shadow: it tells height."""
    fingers = ""
    for name, sign in (("left", -1), ("right", 1)):
        finger = _box(
            (sign * 0.005, 0, 0.034),
            (0.005, 0.012, 0.034),
            STEEL,
            extra=f'name="{name}" mass="0.05" friction="1.6" condim="4"',
        )
        fingers += (
            f'<body name="{name}" gravcomp="1">'
            f'<joint name="{name}" type="slide" axis="{sign} 0 0" range="0 {OPENING}" limited="true" '
            f'damping="25" armature="0.1"/>{finger}</body>'  # slow enough not to jump through a thin wall
        )
    palm = _box((0, 0, 0.072), (OPENING + 0.008, 0.012, 0.008), STEEL, extra='mass="0.3" contype="0" conaffinity="0"')
    shadow = _box((0, 0, 0.0011), (0.016, 0.012, 0.0001), SHADE, solid=False)
    x, y, z = REACH
    return f"""
    <body name="gantry" gravcomp="1">
      <inertial pos="0 0 0" mass="0.1" diaginertia="0.001 0.001 0.001"/>
      <joint name="x" type="slide" axis="1 0 0" range="{x[0]} {x[1]}" limited="true"/>
      <joint name="y" type="slide" axis="0 1 0" range="{y[0]} {y[1]}" limited="true"/>
      {shadow}
      <body name="gripper" gravcomp="1">
        <joint name="z" type="slide" axis="0 0 1" range="{z[0]} {z[1]}" limited="true"/>
        {palm}{fingers}
        <camera name="wrist" pos="0 -0.10 0.11" xyaxes="1 0 0 0 0.866 0.5" fovy="75"/>
      </body>
    </body>"""


# Far away with a long lens: things look equally large wherever they are, and move in the image as they do on the table.
_FRONT = '<camera name="front" pos="0 -1.878 3.351" xyaxes="1 0 0 0 0.866 0.5" fovy="7.66"/>'


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other one, in [0, 1]."""
    red, green, blue = ((1 - share) * mine + share * its for mine, its in zip(colour, other, strict=True))
    return red, green, blue


def _table(disrupted: float) -> str:
    colour, floor = _mixed(TABLE, (0.42, 0.50, 0.58), disrupted), _mixed(FLOOR, (0.25, 0.22, 0.20), disrupted)
    # What carries the objects is a plane that nobody sees: its contacts cost half as much as a box's.
    geoms = f'<geom name="table" type="plane" size="1 1 0.1" group="{UNSEEN}"/>'
    geoms += _box((0, 0, -0.02), (0.28, 0.245, 0.02), colour, solid=False)
    geoms += _box((0, 0, -0.2), (3, 3, 0.01), floor, solid=False)
    if disrupted:  # stripes
        for index in range(-2, 3):
            stripe = _mixed(TABLE, (0.62, 0.55, 0.42), disrupted)
            geoms += _box((0.11 * index, 0, 0), (0.0275, 0.245, 0.0004), stripe, solid=False)
    return geoms


@lru_cache(maxsize=16)
def model(layout: str, disruption: Disruption, image_size: int) -> mujoco.MjModel:
    """The compiled scene, shared by all episodes of a process."""
    patterned = disruption.strength if disruption.kind == "texture" else 0.0
    red, blue = _mixed(RED, (0.72, 0.12, 0.30), patterned), _mixed(BLUE, (0.10, 0.48, 0.72), patterned)
    if layout == BLOCKS:
        zone = _box((0, 0, 0.0005), (ZONE, ZONE, 0.0003), GREEN, solid=False)
        tray = _box((0, 0, TRAY_HEIGHT / 2), (TRAY, TRAY, TRAY_HEIGHT / 2), YELLOW)
        things = f"""
        <body name="zone" mocap="true">{zone}</body>
        <body name="tray" mocap="true">{tray}</body>
        {_cube("red", red, patterned)}{_cube("blue", blue, patterned)}"""
    else:
        base = _box((0, 0, 0.0005), (0.05, 0.05, 0.0003), (0.80, 0.72, 0.86), solid=False)
        # A body of its own: ray casting overlooks what is only seen on a body that can also be touched.
        peg = _box((0, 0, PEG_HEIGHT / 2), (PEG, PEG, PEG_HEIGHT / 2), PURPLE)
        things = f"""
        <body name="peg" mocap="true">{peg}<body name="base">{base}</body></body>
        {_ring()}{_cube("blue", blue, patterned)}"""
    # The thin walls of the ring need smaller steps and exact friction.
    timestep, cone = (0.0125, "pyramidal") if layout == BLOCKS else (0.01, "elliptic")
    xml = f"""
    <mujoco model="tabletop">
      <option timestep="{timestep}" cone="{cone}" integrator="implicitfast" impratio="5"
        iterations="20" tolerance="1e-6"/>
      <size memory="2M"/>
      <visual>
        <headlight ambient="0.5 0.5 0.5" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
        <quality offsamples="0" shadowsize="0"/>
        <global offwidth="{image_size}" offheight="{image_size}"/>
        <map znear="0.04" zfar="6"/>
      </visual>
      <statistic extent="1" center="0 0 0"/>
      <default><geom friction="0.7 0.005 0.0001" condim="3" solref="{2 * timestep} 1"/></default>
      <worldbody>
        <light pos="0 0 2" dir="0.3 0.35 -1" directional="true" castshadow="false"
          diffuse="0.3 0.3 0.3" specular="0 0 0"/>
        {_FRONT}
        {_table(disruption.strength if disruption.kind == "background" else 0.0)}
        {things}
        {_gripper()}
      </worldbody>
      <contact><exclude body1="left" body2="right"/></contact>
      <equality><joint joint1="left" joint2="right" solref="0.02 1"/></equality>
      <actuator>
        <position joint="x" kp="1000" dampratio="1" forcerange="-40 40"/>
        <position joint="y" kp="1000" dampratio="1" forcerange="-40 40"/>
        <position joint="z" kp="1000" dampratio="1" forcerange="-30 30"/>
        <position joint="left" kp="800" forcerange="-8 8"/>
        <position joint="right" kp="800" forcerange="-8 8"/>
      </actuator>
    </mujoco>"""
    return mujoco.MjModel.from_xml_string(xml)
