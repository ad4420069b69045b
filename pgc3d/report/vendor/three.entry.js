export { AmbientLight, Box3, CanvasTexture, Color, DirectionalLight, DoubleSide, MeshBasicMaterial, MeshNormalMaterial, MeshStandardMaterial, NearestFilter, NeutralToneMapping, PerspectiveCamera, PMREMGenerator, RepeatWrapping, Scene, ShaderMaterial, SRGBColorSpace, Vector3, WebGLRenderer } from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
export { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";
