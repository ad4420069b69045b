"""Cameras: their one convention of axes and angles, framing, and the samplers' ranges and repeatability."""

import math

import pytest
import torch
from torch.nn.functional import normalize, pad

from pgc3d.cameras import (
    FAR,
    NEAR,
    CameraContext,
    CloseUpConfig,
    OrbitConfig,
    ReferenceCameraConfig,
    choose,
    fill_distance,
    frame_points,
    orbit,
    perspective,
    reference_view,
    sample_close_ups,
    sample_orbit,
    turntable,
)
from pgc3d.types import Cameras, Step
from pgc3d.view_config import ViewConfig

FOVY = math.radians(40.0)
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cameras_at(azimuth, elevation, distance=3.0, target=None):
    """Cameras at angles in degrees."""
    angles = torch.tensor(azimuth).deg2rad(), torch.tensor(elevation).deg2rad()
    count = len(angles[0])
    return orbit(*angles, torch.full((count,), distance), torch.full((count,), FOVY), target)


def screen(cameras, points):
    """Normalised device coordinates [B, P, 3] of points [P, 3]; x to the right, y up."""
    clip = pad(points, (0, 1), value=1.0) @ cameras.clip_from_world.transpose(1, 2)
    return clip[..., :3] / clip[..., 3:]


def ball(count=4000):
    return normalize(torch.randn(count, 3, generator=seeded(7)), dim=1)


def test_azimuth_counts_from_z_towards_x_and_elevation_upwards():
    cameras = cameras_at([0.0, 90.0, 180.0, -90.0, 0.0], [0.0, 0.0, 0.0, 0.0, 30.0], distance=2.0)
    half = math.sqrt(3)
    expected = [[0.0, 0.0, 2.0], [2.0, 0.0, 0.0], [0.0, 0.0, -2.0], [-2.0, 0.0, 0.0], [0.0, 1.0, half]]
    torch.testing.assert_close(cameras.position, torch.tensor(expected), atol=1e-6, rtol=0)


def test_nothing_is_mirrored():
    """From the front +x is on the right and +y on top; from behind +x is on the left."""
    front, behind = screen(cameras_at([0.0, 180.0], [0.0, 0.0]), 0.3 * torch.eye(3))
    assert front[0, 0] > 0.1
    assert front[1, 1] > 0.1
    assert behind[0, 0] < -0.1
    assert behind[1, 1] > 0.1
    cameras = sample_orbit(64, OrbitConfig(elevation_degrees=(-89.0, 89.0)), seeded())
    torch.testing.assert_close(torch.linalg.det(cameras.camera_from_world[:, :3, :3]), torch.ones(64))


@pytest.mark.parametrize("target", [None, (0.3, -0.2, 0.5)])
def test_a_camera_is_rigid_upright_and_has_its_target_in_the_middle(target):
    count = 32
    azimuth, elevation = (
        torch.empty(count).uniform_(*span, generator=seeded()) for span in ((-7, 7), (-1.5, 1.5))
    )
    place = None if target is None else torch.tensor(target).expand(count, 3)
    distance = torch.full((count,), 2.5)
    cameras = orbit(azimuth, elevation, distance, torch.full((count,), FOVY), place)
    rotation = cameras.camera_from_world[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).expand(count, 3, 3), atol=1e-5, rtol=0
    )
    assert (rotation[:, 0, 1].abs() < 1e-6).all()  # the image's x axis is horizontal
    assert (rotation[:, 1, 1] > 0).all()  # and its y axis points upwards
    middle = torch.zeros(3) if target is None else torch.tensor(target)
    assert screen(cameras, middle[None])[:, 0, :2].abs().max() < 1e-5
    torch.testing.assert_close((cameras.position - middle).norm(dim=1), distance)


def test_projection_maps_the_field_of_view_and_the_planes_to_the_cube():
    fovy = torch.tensor([20.0, 40.0, 100.0], dtype=torch.float64).deg2rad()
    for matrix, angle in zip(perspective(fovy), fovy, strict=True):
        for depth in (NEAR, 1.0, FAR):
            edge = depth * math.tan(angle / 2)
            clip = matrix @ torch.tensor([edge, edge, -depth, 1.0], dtype=torch.float64)
            torch.testing.assert_close(clip[:2] / clip[3], torch.ones(2, dtype=torch.float64))
        for depth, value in ((NEAR, -1.0), (FAR, 1.0)):
            clip = matrix @ torch.tensor([0.0, 0.0, -depth, 1.0], dtype=torch.float64)
            assert (clip[2] / clip[3]).item() == pytest.approx(value)


@pytest.mark.parametrize("fill", [0.4, 0.85, 1.0, 2.0])
@pytest.mark.parametrize("fovy", [20.0, 40.0, 90.0])
def test_the_unit_ball_covers_the_fraction_of_the_image(fill, fovy):
    """In front, its silhouette is a circle in the middle; no point of the ball leaves it."""
    angle = torch.tensor([fovy]).deg2rad()
    distance = fill_distance(angle, torch.tensor([fill]))
    camera = orbit(torch.zeros(1), torch.zeros(1), distance, angle)
    reach = screen(camera, ball(40000))[0, :, :2].norm(dim=1).max().item()
    assert reach <= fill * (1 + 1e-5)
    assert reach == pytest.approx(fill, rel=1e-3)


def test_cameras_beyond_the_far_plane_are_refused():
    with pytest.raises(ValueError, match=r"fovy_degrees 1 and fill 0\.5; raise one of them"):
        OrbitConfig(fovy_degrees=(1.0, 40.0), fill=(0.5, 1.0))
    with pytest.raises(ValueError, match="must stand within 99"):
        ViewConfig(fovy_degrees=1.0, fill=0.5)


@pytest.mark.parametrize("azimuth", [(-180.0, 180.0), (-30.0, 60.0), (0.0, 0.0)])
def test_random_cameras_stay_in_their_ranges(azimuth):
    config = OrbitConfig(
        elevation_degrees=(-10.0, 45.0), azimuth_degrees=azimuth, fovy_degrees=(30.0, 50.0), fill=(0.7, 0.9)
    )
    cameras = sample_orbit(500, config, seeded())
    fovy = 2 * torch.atan(1 / cameras.clip_from_camera[:, 1, 1])
    fill = torch.tan(torch.asin(1 / cameras.distance)) / torch.tan(fovy / 2)
    ranges = (
        (cameras.azimuth.rad2deg(), azimuth),
        (cameras.elevation.rad2deg(), (-10.0, 45.0)),
        (fovy.rad2deg(), (30.0, 50.0)),
        (fill, (0.7, 0.9)),
    )
    for values, (low, high) in ranges:
        assert values.min() >= low - 1e-3
        assert values.max() <= high + 1e-3
        assert values.max() - values.min() >= 0.95 * (high - low)


@pytest.mark.parametrize("stratified", [True, False])
def test_cameras_of_a_batch_stand_around_the_object(stratified):
    gaps = []
    for seed in range(60):
        config = OrbitConfig(stratified=stratified)
        azimuth = sample_orbit(4, config, torch.Generator().manual_seed(seed)).azimuth.sort().values
        gaps.append(torch.cat([azimuth.diff(), azimuth[:1] + 2 * math.pi - azimuth[-1:]]).max().item())
    # a quarter for each, anywhere in it: less than two quarters from one to the next
    assert (max(gaps) < math.pi) == stratified


@pytest.mark.parametrize("config", [OrbitConfig(), CloseUpConfig()])
def test_the_cameras_of_a_step_are_a_function_of_the_step(config):
    """No state: a resumed run has the cameras of an uninterrupted one, in any order of the calls."""
    context = CameraContext(
        4, CPU, surface=lambda count, generator: (points := towards(count, generator), points)
    )
    first, second = config.build(context), config.build(context)
    steps = [Step(index, 20, seed=3) for index in range(4)]
    found = {step.index: first(step) for step in steps}
    for step in reversed(steps):
        same(found[step.index], second(step))
    assert not torch.equal(found[0].azimuth, found[1].azimuth)
    assert not torch.equal(found[0].azimuth, first(Step(0, 20, seed=4)).azimuth)


def towards(count, generator):
    return normalize(torch.randn(count, 3, generator=generator), dim=1)


def same(first: Cameras, second: Cameras):
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)), name


def test_close_ups_keep_their_distance_and_narrow_the_view():
    config = CloseUpConfig(share=(1.0,), zoom=(4.0,), spread_degrees=0.0)

    def surface(count, generator):
        points = towards(count, generator)
        return 0.5 * points, points

    cameras = sample_close_ups(32, config, surface, 0.5, seeded(), CPU)
    tangent = 1 / cameras.clip_from_camera[:, 1, 1]
    torch.testing.assert_close(tangent, torch.full((32,), math.tan(FOVY / 2) / 4))
    fill = sum(config.orbit.fill) / 2
    expected = fill_distance(torch.full((32,), FOVY), torch.full((32,), fill))
    torch.testing.assert_close(cameras.distance, expected)
    middle = cameras.position - cameras.distance[:, None] * cameras.camera_from_world[:, 2, :3]
    torch.testing.assert_close(middle.norm(dim=1), torch.full((32,), 0.5), atol=1e-5, rtol=0)
    assert cameras.elevation.rad2deg().min() >= config.orbit.elevation_degrees[0] - 1e-4
    assert cameras.elevation.rad2deg().max() <= config.orbit.elevation_degrees[1] + 1e-4


def test_framed_points_have_their_border_on_both_sides():
    points = 0.4 * ball(300) * torch.tensor([1.0, 0.3, 0.5]) + torch.tensor([0.2, 0.1, -0.3])
    azimuth, elevation = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 0.5, -0.4])
    fovy = torch.full((3,), FOVY)
    target, distance = frame_points(points, azimuth, elevation, fovy, border=0.2, nearest=torch.ones(3))
    seen = screen(orbit(azimuth, elevation, distance, fovy, target), points)[..., :2]
    low, high = seen.amin(1), seen.amax(1)
    torch.testing.assert_close(low, -high, atol=1e-3, rtol=0)
    torch.testing.assert_close((high - low).amax(1) / 2, torch.full((3,), 0.8), atol=1e-3, rtol=0)
    _, held = frame_points(points, azimuth, elevation, fovy, border=0.2, nearest=torch.full((3,), 5.0))
    torch.testing.assert_close(held, torch.full((3,), 5.0))


def test_a_turntable_goes_once_around_from_the_front():
    cameras = turntable(8, elevation_degrees=15.0)
    position = cameras.position
    torch.testing.assert_close(position[0, 0], torch.tensor(0.0))
    assert position[0, 2] > 0
    assert position[2, 0] > 0  # a quarter on, from +z towards +x
    torch.testing.assert_close(cameras.azimuth.diff(), torch.full((7,), math.tau / 8))
    torch.testing.assert_close(cameras.elevation, torch.full((8,), math.radians(15.0)))
    torch.testing.assert_close(position.norm(dim=1), cameras.distance)


def test_the_reference_camera_is_that_of_the_view_at_every_step():
    view = ViewConfig(elevation_degrees=20.0, fovy_degrees=30.0, fill=0.8)
    cameras = ReferenceCameraConfig().build(CameraContext(3, CPU, view))
    expected = reference_view(view, 3)
    for index in (0, 7):
        same(cameras(Step(index, 10)), expected)
    torch.testing.assert_close(expected.azimuth, torch.zeros(3))
    torch.testing.assert_close(expected.elevation, torch.full((3,), math.radians(20.0)))


def test_novel_views_at_the_reference_cameras_distance_have_its_distance():
    config = OrbitConfig(fovy_degrees=(40.0, 40.0), fill=(1.0, 1.0))
    cameras = sample_orbit(5, config, torch.Generator().manual_seed(0))
    reference = reference_view(ViewConfig(fovy_degrees=40.0, fill=1.0))
    torch.testing.assert_close(cameras.distance, reference.distance.expand(5))
    alike = orbit(torch.zeros(1), torch.zeros(1), reference.distance, torch.tensor([math.radians(40.0)]))
    torch.testing.assert_close(alike.clip_from_camera, reference.clip_from_camera)


def test_each_chosen_camera_is_whole():
    first, second = (sample_orbit(6, OrbitConfig(), seeded(seed)) for seed in (1, 2))
    condition = torch.tensor([True, False, True, True, False, False])
    mixed = choose(condition, first, second)
    same(mixed[condition.nonzero()[:, 0]], first[condition.nonzero()[:, 0]])
    same(mixed[(~condition).nonzero()[:, 0]], second[(~condition).nonzero()[:, 0]])
    for index in range(6):
        same(mixed[index : index + 1], (first if condition[index] else second)[index : index + 1])
