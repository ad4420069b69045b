"use strict";
// An orbit viewer of a GLB on a canvas; needs the global THREE of vendor/three.min.js and nothing of a page.
//
//   const viewer = new Pgc3dViewer.Viewer(canvas);
//   await viewer.load(arrayBuffer);
//   viewer.show("normals"); viewer.setBackground("dark"); viewer.turn(true); viewer.reset();
//   viewer.onCamera = () => other.follow(viewer);
const Pgc3dViewer = (() => {
  const MODES = ["lit", "base colour", "normals", "wireframe", "UV checker", "roughness", "metallic"];
  const BACKGROUNDS = { light: 0xd6dade, dark: 0x1b1e21 };
  const LINES = { light: 0x20262b, dark: 0xd4dade };
  const FIELD_OF_VIEW = 40; // degrees
  const LIGHT = 0.6; // of the environment, with which white surfaces are still shaded
  const START = new THREE.Vector3(0.35, 0.3, 1).normalize(); // from the asset to the camera

  class Viewer {
    constructor(canvas) {
      this.canvas = canvas;
      this.onCamera = () => {};
      this.mode = MODES[0];
      this.background = "light";
      this.meshes = []; // {mesh, own, fill}
      this.cache = new Map();
      this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true });
      this.renderer.toneMapping = THREE.NeutralToneMapping;
      this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
      this.scene = new THREE.Scene();
      this.scene.environment = environment(this.renderer);
      this.scene.environmentIntensity = LIGHT;
      this.camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
      this.controls = new THREE.OrbitControls(this.camera, canvas);
      this.controls.autoRotateSpeed = 4;
      this.controls.listenToKeyEvents(canvas);
      this.controls.addEventListener("change", () => {
        this.draw();
        if (!this.following) this.onCamera();
      });
      this.setBackground(this.background);
      new ResizeObserver(() => this.resize()).observe(canvas);
      this.resize();
    }

    async load(buffer) {
      const gltf = await new THREE.GLTFLoader().parseAsync(buffer, "");
      if (this.root) this.scene.remove(this.root);
      this.meshes = [];
      this.cache.clear();
      this.root = gltf.scene;
      const found = [];
      this.root.traverse((node) => { if (node.isMesh) found.push(node); });
      for (const mesh of found) {
        const fill = mesh.clone(false); // hides the lines of a wireframe that lie behind the surface
        fill.material = new THREE.MeshBasicMaterial({ polygonOffset: true, polygonOffsetFactor: 1, polygonOffsetUnits: 1,
          side: THREE.DoubleSide, toneMapped: false });
        fill.visible = false;
        mesh.parent.add(fill);
        this.meshes.push({ mesh, own: mesh.material, fill });
      }
      this.scene.add(this.root);
      this.root.updateMatrixWorld(true);
      const box = new THREE.Box3().setFromObject(this.root, true);
      if (box.isEmpty()) throw new Error("the file has no mesh");
      this.center = box.getCenter(new THREE.Vector3());
      this.radius = Math.max(box.getSize(new THREE.Vector3()).length() / 2, 1e-9);
      this.setBackground(this.background);
      this.show(this.mode);
      this.reset();
    }

    show(mode) {
      this.mode = mode;
      for (const item of this.meshes) {
        const own = item.own;
        item.mesh.material = Array.isArray(own) ? own.map((one) => this.material(one, item.mesh)) : this.material(own, item.mesh);
        item.fill.visible = mode === "wireframe";
      }
      this.draw();
    }

    setBackground(name) {
      this.background = name;
      this.scene.background = new THREE.Color(BACKGROUNDS[name]);
      for (const item of this.meshes) item.fill.material.color.set(BACKGROUNDS[name]);
      for (const material of this.cache.values()) if (material.wireframe) material.color.set(LINES[name]);
      this.draw();
    }

    // The lights of the lit mode: turned about the vertical, and times a factor.
    light(degrees, brightness) {
      this.scene.environmentRotation.y = degrees * Math.PI / 180;
      this.scene.environmentIntensity = LIGHT * brightness;
      this.draw();
    }

    turn(on) {
      this.controls.autoRotate = on;
      this.draw();
    }

    reset() {
      if (!this.root) return;
      this.place(this.center, START.clone().multiplyScalar(this.radius * this.reach()).add(this.center));
    }

    // From how far a sphere of radius 1 is in sight, in the narrower direction.
    reach() {
      const half = (FIELD_OF_VIEW / 2) * Math.PI / 180;
      return 1 / Math.sin(Math.atan(Math.tan(half) * Math.min(this.camera.aspect, 1)));
    }

    // The view of another viewer, relative to the sizes of the assets.
    follow(other) {
      if (!this.root || !other.root) return;
      const own = (point) => point.clone().sub(other.center).multiplyScalar(this.radius / other.radius).add(this.center);
      this.following = true;
      this.place(own(other.controls.target), own(other.camera.position));
      this.following = false;
    }

    place(target, position) {
      this.camera.near = this.radius / 100;
      this.camera.far = this.radius * 100;
      this.camera.updateProjectionMatrix();
      this.controls.minDistance = this.radius / 20;
      this.controls.maxDistance = this.radius * 40;
      this.controls.target.copy(target);
      this.camera.position.copy(position);
      this.controls.update();
      this.draw();
    }

    resize() {
      const { clientWidth, clientHeight } = this.canvas;
      if (!clientWidth || !clientHeight) return;
      this.renderer.setSize(clientWidth, clientHeight, false);
      const before = this.reach();
      this.camera.aspect = clientWidth / clientHeight;
      this.camera.updateProjectionMatrix();
      if (this.root) { // what was in sight stays so, as when a phone is turned
        const target = this.controls.target, offset = this.camera.position.clone().sub(target);
        this.place(target.clone(), offset.multiplyScalar(this.reach() / before).add(target));
      }
      this.draw();
    }

    // Draws once, soon; again and again only while the asset turns.
    draw() {
      if (this.pending) return;
      this.pending = true;
      requestAnimationFrame(() => {
        this.pending = false;
        if (this.controls.autoRotate) {
          this.controls.update();
          this.draw();
        }
        this.renderer.render(this.scene, this.camera);
      });
    }

    material(own, mesh) {
      if (this.mode === "lit") return own;
      const key = `${this.mode} ${own.uuid} ${"uv" in mesh.geometry.attributes}`;
      if (!this.cache.has(key)) this.cache.set(key, this.make(own, "uv" in mesh.geometry.attributes));
      return this.cache.get(key);
    }

    make(own, hasCoordinates) {
      const plain = { side: own.side, alphaTest: own.alphaTest, transparent: own.transparent, opacity: own.opacity, toneMapped: false };
      switch (this.mode) {
        case "base colour":
          return new THREE.MeshBasicMaterial({ ...plain, map: own.map ?? null, color: own.color, vertexColors: own.vertexColors });
        case "normals":
          return new THREE.MeshNormalMaterial({ side: own.side, normalMap: own.normalMap ?? null,
            normalScale: own.normalScale?.clone(), flatShading: own.flatShading ?? false });
        case "wireframe":
          return new THREE.MeshBasicMaterial({ wireframe: true, color: LINES[this.background], toneMapped: false });
        case "UV checker":
          return new THREE.MeshBasicMaterial({ side: own.side, map: hasCoordinates ? checker(own.map?.channel ?? 0) : null,
            color: hasCoordinates ? 0xffffff : 0x909090, toneMapped: false });
        case "roughness":
          return channel(plain, own.roughnessMap ?? null, "g", own.roughness ?? 1);
        default:
          return channel(plain, own.metalnessMap ?? null, "b", own.metalness ?? 0);
      }
    }
  }

  function environment(renderer) {
    const generator = new THREE.PMREMGenerator(renderer);
    const texture = generator.fromScene(new THREE.RoomEnvironment(), 0.04, 0.1, 100, { size: 128 }).texture;
    generator.dispose();
    return texture;
  }

  // One channel of a texture times a factor, as grey without a conversion of colours: 0 is black, 1 is white.
  function channel(plain, map, component, factor) {
    const material = new THREE.MeshBasicMaterial({ ...plain, map });
    material.onBeforeCompile = (shader) => {
      shader.uniforms.factor = { value: factor };
      shader.fragmentShader = "uniform float factor;\n" + shader.fragmentShader
        .replace("#include <map_fragment>", map
          ? `diffuseColor.rgb = vec3(factor * texture2D(map, vMapUv).${component});`
          : "diffuseColor.rgb = vec3(factor);")
        .replace("#include <colorspace_fragment>", "");
    };
    material.customProgramCacheKey = () => `${component} ${Boolean(map)}`;
    return material;
  }

  // Eight by eight cells with their column and row, counted from the upper left of the image.
  function checker(uvChannel) {
    const side = 1024, cells = 8, cell = side / cells;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `600 ${cell * 0.4}px sans-serif`;
    for (let row = 0; row < cells; row++) {
      for (let column = 0; column < cells; column++) {
        const odd = (row + column) % 2;
        const hue = 360 * column / cells;
        context.fillStyle = `hsl(${hue} ${odd ? 35 : 60}% ${odd ? 78 - 4 * row : 62 - 4 * row}%)`;
        context.fillRect(column * cell, row * cell, cell, cell);
        context.fillStyle = "#101418";
        context.fillText(`${"ABCDEFGH"[column]}${row + 1}`, (column + 0.5) * cell, (row + 0.5) * cell);
      }
    }
    const texture = new THREE.CanvasTexture(canvas);
    texture.flipY = false;
    texture.colorSpace = THREE.SRGBColorSpace;
    texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
    texture.anisotropy = 8;
    texture.channel = uvChannel;
    return texture;
  }

  return { Viewer, MODES, BACKGROUNDS: Object.keys(BACKGROUNDS) };
})();
