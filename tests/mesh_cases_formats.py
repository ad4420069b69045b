"""Small OBJ, PLY and STL files, each with what a reader must find in it or say of it."""

import math
import struct

from mesh_files import (
    CUBE,
    MIXED,
    MTL,
    NOTCHED,
    QUADS,
    SLAB,
    SLAB_SIDES,
    SLANTED,
    UPSIDE,
    Case,
    binary_ply,
    binary_stl,
    circle,
    cube,
    f,
    obj,
    ply,
    ply_header,
    slab,
    solid,
    stl,
    strips,
    v,
)

OBJ_CASES = {
    "plain.obj": cube(),
    "mtllib_parent.obj": cube("mtllib ../materials/chair.mtl\n", note="outside the folder and not read"),
    "mtllib_absolute.obj": cube("mtllib /etc/chair.mtl\n", note="outside the folder and not read"),
    "mtllib_windows.obj": cube("mtllib C:\\a\\chair.mtl\n", note="outside the folder and not read"),
    "mtllib_http.obj": cube("mtllib https://a/chair.mtl\n", note="outside the folder and not read"),
    "mtllib_missing.obj": cube("mtllib chair.mtl\n", note="'chair.mtl' is missing"),
    **{
        f"map_{key}.obj": cube(
            "mtllib a.mtl\nusemtl a\n",
            lost=("1 material",),
            beside={"a.mtl": MTL + b"map_Kd " + image},
        )
        for key, image in {
            "absolute": b"C:\\textures\\wood.png",
            "unix": b"/textures/wood.png",
            "parent": b"../textures/wood.jpg",
            "http": b"http://a/wood.png",
            "nothing": b"",
        }.items()
    },
    "concave.obj": obj(
        v(NOTCHED) + "f 3 4 5 1 2\nf 5 4 3 2 1\n", vertices=5, faces=6, area=4.4, high=(2, 2, 0)
    ),
    "concave_plain.obj": obj(
        v([*NOTCHED, (1, 1, -1)]) + "f 1 2 3 4 5\n", vertices=6, faces=3, area=2.2, high=(2, 2, 0)
    ),
    "negative.obj": obj(
        v(CUBE) + "".join(f"f {' '.join(str(k - 8) for k in quad)}\n" for quad in QUADS), volume=1.0
    ),
    "negative_between.obj": obj(
        v(CUBE[:4]) + "f -4 -3 -1 -2\n" + v(CUBE[4:]) + f(QUADS[1:]) + "v 9 9 9\n", vertices=9, volume=1.0
    ),
    "faces_first.obj": obj(f(QUADS) + v(CUBE), volume=1.0),
    "cr_only.obj": obj((v(CUBE) + f(QUADS)).replace("\n", "\r"), volume=1.0),
    "crlf.obj": obj((v(CUBE) + f(QUADS)).replace("\n", "\r\n"), volume=1.0),
    "no_last_line_end.obj": obj((v(CUBE) + f(QUADS)).rstrip("\n"), volume=1.0),
    "tabs.obj": obj("\t  " + (v(CUBE) + f(QUADS)).replace(" ", "\t \t"), volume=1.0),
    "indented.obj": obj(" " * 100 + (v(CUBE) + f(QUADS)).replace("f", " " * 50 + "f"), volume=1.0),
    "continued.obj": obj((v(CUBE) + f(QUADS)).replace(" 4 3\n", " \\\n 4 3\n"), volume=1.0),
    "continued_crlf.obj": obj(
        (v(CUBE) + f(QUADS)).replace(" 4 3\n", " \\ \n 4 3\n").replace("\n", "\r\n"), volume=1.0
    ),
    "comment_with_backslash.obj": cube("# C:\\meshes\\\n"),
    "comments.obj": obj((v(CUBE) + f(QUADS)).replace("\n", " # f 1 2 3\n"), volume=1.0),
    "bom.obj": obj(b"\xef\xbb\xbf" + (v(CUBE) + f(QUADS)).encode(), volume=1.0),
    "utf16.obj": obj((v(CUBE) + f(QUADS)).encode("utf-16"), volume=1.0),
    "utf16_le.obj": obj((v(CUBE) + f(QUADS)).encode("utf-16-le"), volume=1.0),
    "utf16_be.obj": obj((v(CUBE) + f(QUADS)).encode("utf-16-be"), volume=1.0),
    "groups.obj": obj(
        (v(CUBE) + "g top\nusemtl rot\n" + f(QUADS[:3]) + "s 1\no second\nusemtl gr\xfcn#2\n" + f(QUADS[3:]))
        .encode("latin-1"),
        volume=1.0,
        note="no library describes the material 'rot'",
        lost=("1 object name", "1 group", "2 materials", "smoothing groups"),
    ),
    "weights.obj": obj(v((*point, 1) for point in CUBE) + f(QUADS), volume=1.0),
    "vertex_colours.obj": obj(
        v((*point, 1, 0, 0) for point in CUBE) + f(QUADS), volume=1.0, lost=("vertex colours",)
    ),
    "two_vertex_face.obj": cube(after="f 1 2\nf 3\nf\n", note="3 faces of fewer than three corners"),
    "lines_and_points.obj": cube(
        after="l 1 2 3\np 1\n", note="lines and points passed over", lost=("1 line", "1 point")
    ),
    "unused_nan.obj": obj(
        v(CUBE) + "v nan nan nan\n" + f(QUADS), vertices=9, volume=1.0, note="1 unused vertex without finite"
    ),
    "unused_msvc_nan.obj": obj(
        v(CUBE) + "v -1.#IND 1.#QNAN 1.#INF\n" + f(QUADS), vertices=9, volume=1.0, note="1 unused vertex"
    ),
    "outlier_unused.obj": obj(v([*CUBE, (1e6, 0, 0)]) + f(QUADS), vertices=9, volume=1.0),
    "unknown_lines.obj": cube("meaning 42\n", note="unknown kind passed over: 'meaning'"),
    "inside_out.obj": obj(v(CUBE) + f(UPSIDE), volume=-1.0),
    "slab.obj": slab(0),
    "slab_start2.obj": slab(2),
    "ngon_big.obj": circle(200),
    "flat_box.obj": obj(v((x * 1e-30, y, z) for x, y, z in CUBE) + f(QUADS), area=2.0, high=(0, 1, 1)),
    "vt_index_without_vt.obj": obj(v(CUBE) + f(QUADS, "{0}/{0}"), volume=1.0),
    "vn_index_without_vn.obj": obj(v(CUBE) + f(QUADS, "{0}//{0}"), volume=1.0),
    "both_without_either.obj": obj(v(CUBE) + f(QUADS, "{0}/{0}/{0}"), volume=1.0),
    "negative_vt_without_vt.obj": obj(v(CUBE) + f(QUADS, "{0}/-1/-1"), volume=1.0),
    "vt.obj": obj(v(CUBE) + "vt 0.5 0.5\n" * 8 + f(QUADS, "{0}/{0}"), volume=1.0, has_uv=True),
    "vt_of_one_number.obj": obj(v(CUBE) + "vt 0.5\n" * 8 + f(QUADS, "{0}/{0}"), volume=1.0, has_uv=True),
    "some_without_vt.obj": obj(
        v(CUBE) + "vt 0.5 0.5\n" * 8 + f(QUADS[:4], "{0}/{0}") + f(QUADS[4:]),
        volume=1.0,
        has_uv=True,
        without_uv=4,
    ),
    "one_nan_in_vt.obj": obj(
        v(CUBE) + "vt nan 0\n" + "vt 0.5 0.5\n" * 7 + f(QUADS, "{0}/{0}"),
        volume=1.0,
        has_uv=True,
        without_uv=6,
    ),
    "some_without_vn.obj": obj(
        v(CUBE) + "vn 0 0 1\n" + f(QUADS[:4], "{0}//1") + f(QUADS[4:]),
        volume=1.0,
    ),
    "zero_normal.obj": obj(
        v(CUBE) + "vn 0 0 0\n" + f(QUADS, "{0}//1"), volume=1.0
    ),
    "nothing.obj": obj("", error="must have faces, got none"),
    "comments_only.obj": obj("# nothing\n", error="holds nothing"),
    "points_only.obj": obj(v(CUBE), error="must have faces, got none .* 8 vertices"),
    "one_vertex.obj": obj("v 388.018188 778.077576 347.121552\n", error="got none .* holds 1 vertex;"),
    "lines_only.obj": obj(v(CUBE) + "l 1 2 3\n", error="got none .* 8 vertices, 1 line;"),
    "freeform.obj": obj(
        v(CUBE) + "cstype bezier\ndeg 3\ncurv 0 1 1 2 3 4\nend\n", error="got none .* free-form curves"
    ),
    "zero_index.obj": obj(v(CUBE) + "f 0 1 2\n", error="counted from 1, got vertex 0 of 8 in line 9 of"),
    "far_index.obj": obj(v(CUBE) + "\nf 1 2 9\n", error="got vertex 9 of 8 in line 10 of"),
    "far_back.obj": obj(v(CUBE) + "f -1 -2 -9\n", error="got vertex -9 of 8 in line 9 of"),
    "ahead_by_minus.obj": obj(f([(-2, -3, -4)]) + v(CUBE), error="got vertex -1 of 8 in line 1 of"),
    "huge_index.obj": obj(v(CUBE) + f"f 1 2 {'9' * 40}\n", error="of 8 in line 9 of"),
    "far_vt.obj": obj(v(CUBE) + "vt 0 0\nf 1/1 2/2 3/1\n", error="got texture coordinate 2 of 1 in line 10"),
    "far_vn.obj": obj(v(CUBE) + "vn 0 0 1\nf 1//1 2//1 3//5\n", error="got normal 5 of 1 in line 10"),
    "word.obj": obj(v(CUBE) + "f 1 2 x\n", error="got 'x' in line 9 of"),
    "four_parts.obj": obj(v(CUBE) + "f 1/1/1/1 2 3\n", error="got '1/1/1/1' in line 9 of"),
    "float_index.obj": obj(v(CUBE) + "f 1 2 3.0\n", error="got '3.0' in line 9 of"),
    "joined_indices.obj": obj(v(CUBE) + "f 1-2 3\n", error="got '1-2' in line 9 of"),
    "decimal_comma.obj": obj(
        v(CUBE[:2]) + "v 0,5 1 0\nf 1 2 3\n", error="got '0,5' in line 3 of .*a point in place of the comma"
    ),
    "short.obj": obj("v 0 0 0\nv 0 0\nf 1 1 1\n", error="3 numbers behind 'v', got 2 in line 2 of"),
    "control_characters.obj": obj(b"v 0 0 \x1b[31m\nf 1 1 1\n", error=r"'\\x1b\[31m' in line 1 of"),
    "long_word.obj": obj(f"v 0 0 {'x' * 10_000}\nf 1 1 1\n", error=r"'x{37}\.\.\.' in line 1 of"),
    "after_continued.obj": obj("v 0 0 \\\n0\nv 0 0 a\nf 1 1 1\n", error="got 'a' in line 3 of"),
}  # fmt: skip


QUADS_PLY = ply(CUBE, QUADS).content
PLY_CASES = {
    "quads.ply": ply(CUBE, QUADS, name="vertex_index", volume=1.0),
    "mixed.ply": ply(CUBE, MIXED, volume=1.0),
    "pentagon.ply": ply(
        [(0, 0, 0), (2, 0, 0), (2, 2, 0), (1, 3, 0), (0, 2, 0), (1, 1, -1)],
        [(0, 1, 2, 3, 4), (0, 1, 5)],
        vertices=6, faces=4, area=5 + math.sqrt(2), low=(0, 0, -1), high=(2, 3, 0),
    ),
    "concave_quad.ply": ply(
        [(0, 0, 0), (2, 0, 0), (0.4, 0.4, 0), (0, 2, 0)],
        [(1, 2, 3, 0)],
        vertices=4, faces=2, area=0.8, high=(2, 2, 0),
    ),
    "uv_st.ply": ply(
        [(*point, point[1], point[2]) for point in CUBE], MIXED[:2], more="st", faces=2, area=1.0,
        high=(0, 1, 1), has_uv=True,
    ),
    "uv_texture.ply": ply(
        [(*point, 0, 1) for point in CUBE], QUADS, more=("texture_u", "texture_v"), volume=1.0, has_uv=True
    ),
    "normals.ply": ply([(*point, 0, 0, 2) for point in CUBE], QUADS, more=("nx", "ny", "nz"), volume=1.0),
    "quality.ply": ply(
        [(*point, 5) for point in CUBE], QUADS, more=("quality",), volume=1.0,
        lost=("vertex property quality",),
    ),
    "texture_file_missing.ply": ply(
        CUBE, QUADS, comment="TextureFile my wood.png", volume=1.0, lost=("1 material",)
    ),
    "texture_file_outside.ply": ply(
        CUBE, QUADS, comment="TextureFile ../wood.png", volume=1.0, lost=("1 material",)
    ),
    **{
        f"{name}_{'little' if order == '<' else 'big'}.ply": binary_ply(CUBE, polygons, order, volume=1.0)
        for name, polygons in {"quads": QUADS, "mixed": MIXED}.items()
        for order in "<>"
    },
    "slab_little.ply": binary_ply(
        [(x, y, z) for y in (0, 0.3) for x, z in SLAB],
        [(5, 4, 3, 2, 1, 0), (6, 7, 8, 9, 10, 11), *SLAB_SIDES],
        vertices=12, faces=20, area=8.4, low=(0, 0, -2), high=(2, 0.3, 0), volume=0.9,
    ),
    "two_corners.ply": ply(CUBE, [*QUADS, (0, 1)], volume=1.0, note="1 face of fewer than three corners"),
    "gaussians.ply": ply(
        [(*point, 1) for point in CUBE], None, more=("f_dc_0",), error="8 vertices of a cloud of Gaussians"
    ),
    "strips_two.ply": Case(strips("12 0 1 2 3 -1 4 5 6 7 -1 0 4"), faces=4, area=2.0),
    "strips_rows.ply": Case(strips("4 0 1 2 3\n4 4 5 6 7", 2), faces=4, area=2.0),
    "strips_stitched.ply": Case(strips("10 0 1 2 3 3 4 4 5 6 7"), faces=4, area=2.0),
    "strips_beside_no_faces.ply": Case(
        strips("4 0 1 2 3").replace(b"element tristrips", b"element face 0\nelement tristrips"),
        faces=2,
        area=1.0,
        high=(0, 1, 1),
    ),
    "line_without_comment.ply": Case(
        QUADS_PLY.replace(b"comment made here", b"Created by Blender3D 2.49 - www.blender.org"), volume=1.0,
        note="1 header line passed over, the first begins with 'Created'",
    ),
    "misspelt_element.ply": Case(
        QUADS_PLY.replace(b"element face", b"elment face"), error="got 'elment' in line 8"
    ),
    "misspelt_property.ply": Case(
        QUADS_PLY.replace(b"property float y", b"proprty float y"), error="got 'proprty' in line 6"
    ),
    "points.ply": ply(CUBE, None, error="must have faces, got none .* holds 8 vertices;"),
    "no_faces.ply": ply(CUBE, [], error="must have faces, got none .* holds 8 vertices;"),
    "lines_only.ply": ply(CUBE, [(0, 1)], error="none of three corners or more"),
    "cut.ply": Case(binary_ply(CUBE, MIXED).content[:-1], error="7 rows of 'face' end after 6"),
    "cut_ascii.ply": Case(QUADS_PLY[:-3], error="6 rows of 'face' end after 5"),
    "no_values.ply": Case(ply_header("ascii", 8, 6).encode(), error="8 rows of 'vertex' end after 0"),
    "cut_header.ply": Case(QUADS_PLY[:60], error="must have a line 'end_header', got none"),
    "huge_count.ply": Case(
        ply_header("binary_little_endian", 9, 10**17).encode(), error="at most 2 M faces .* 10{17} faces"
    ),
    "huge_count_of_nothing.ply": Case(
        f"ply\nformat ascii 1.0\nelement vertex 9\nelement face {10**17}\nend_header\n".encode(),
        error="at most 2 M faces",
    ),
    "huge_list.ply": Case(
        binary_ply(CUBE, [], "<").content.replace(b"face 0", b"face 1").replace(b"list uchar", b"list uint")
        + b"\xff" * 8,
        error="a list of 4.29497e",
    ),
    "negative_list.ply": Case(
        ply(CUBE, [(0, 1, 2)]).content.replace(b"3 0 1 2", b"-3 0 1 2"), error="a list of -3 values in row 0"
    ),
    "negative_index.ply": ply(CUBE, [(0, 1, 3), (0, 1, -3)], error="got vertex -3 of 8, .* in face 1 of"),
    "far_index.ply": ply(CUBE, [(0, 1, 8)], error="got vertex 8 of 8, counted from 0, in face 0"),
    "fraction_index.ply": ply(CUBE, [(0, 1, 2.5)], error=r"got vertex 2\.5 of 8"),
    "decimal_comma.ply": Case(
        QUADS_PLY.replace(b"\n0 0 1\n", b"\n0 0 1,5\n"), error="'1,5' in line 12 of .*comma"
    ),
    "bad_type.ply": Case(
        QUADS_PLY.replace(b"float y", b"flaot y"), error="got 'flaot y' in line 6 of"
    ),
    "bad_count.ply": Case(QUADS_PLY.replace(b"vertex 8", b"vertex -8"), error="'vertex -8' in line 4"),
    "bad_format.ply": Case(QUADS_PLY.replace(b"ascii", b"text"), error="got 'text 1.0' in line 2"),
    "no_x.ply": Case(QUADS_PLY.replace(b"float x", b"float a"), error="vertices with x, y and z"),
    "no_list.ply": Case(
        QUADS_PLY.replace(b"vertex_indices", b"corners"), error="a list vertex_indices"
    ),
    "empty.ply": Case(b"", error="begin with the line 'ply'"),
}  # fmt: skip


STL_CASES = {
    "ascii.stl": stl(solid()),
    "ascii_upper.stl": stl(solid().upper()),
    "ascii_two_solids.stl": stl(
        solid() + solid(name="b", scale=2),
        vertices=24, faces=8, area=5 * SLANTED, high=(2, 2, 2), lost=("names of 2 solids",),
    ),
    "ascii_crlf_tabs.stl": stl(solid().replace("\n", "\r\n").replace("  ", "\t")),
    "ascii_cr.stl": stl(solid().replace("\n", "\r")),
    "ascii_one_line.stl": stl(solid().replace("\n", " ")),
    "ascii_latin1_name.stl": stl(solid(name="gr\xfcn").encode("latin-1")),
    "ascii_named_vertex.stl": stl(solid(name="vertex facet test")),
    "ascii_bom.stl": stl("\ufeff" + solid()),
    "ascii_without_end.stl": stl(solid().rpartition("endsolid")[0], note="may have been cut off"),
    "binary.stl": stl(binary_stl(4)),
    "binary_solid_header.stl": stl(binary_stl(4, b"solid facet")),
    "binary_count_zero.stl": stl(binary_stl(0), note="states 0 triangles, but the file holds 4"),
    "binary_count_more.stl": stl(binary_stl(2**32 - 1), note="states 4294967295 triangles, but"),
    "binary_count_fewer.stl": stl(binary_stl(3), note="states 3 triangles, but the file holds 4"),
    "binary_appended.stl": stl(binary_stl(4, after=b"\0\0")),
    "binary_appended_zeros.stl": stl(binary_stl(4, after=b"\0" * 100)),
    "binary_appended_far.stl": stl(binary_stl(4, after=struct.pack("<12fH", *[1e9, 2e9, 3e9] * 4, 0))),
    "binary_colours.stl": stl(binary_stl(4, attribute=0x8FFF), lost=("colours of triangles",)),
    "binary_cut.stl": stl(binary_stl(4)[:-3], error="it states 4 triangles and ends after 3"),
    "binary_header_only.stl": stl(b"\1" * 84, error="ends after 0|got none"),
    "empty.stl": stl(b"", error="got none .* empty"),
    "zeros.stl": stl(b"\0" * 84, error="got none"),
    "short.stl": stl(b"\1\0\2", error="at least 84 bytes, got 3"),
    "text.stl": stl("solid a\nendsolid a\n", error="text without a facet"),
    "ascii_cut.stl": stl(solid()[:400], error="followed by three vertices, got [012] in line"),
    "ascii_four.stl": stl(
        solid().replace("vertex 0 1 0", "vertex 0 1 0\nvertex 1 1 0", 1), error="got 4 in line 2 of"
    ),
    "ascii_comma.stl": stl(solid(scale=0.5).replace("0.5", "0,5", 1), error="'0,5' in line 5 of .*comma"),
    "ascii_word.stl": stl(solid().replace("vertex 1 0 0", "vertex 1 0 x", 1), error="got 'x' in line 5 of"),
}  # fmt: skip


FORMAT_CASES = OBJ_CASES | PLY_CASES | STL_CASES
