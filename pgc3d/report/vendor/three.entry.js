export {
  Box3, CanvasTexture, Color, DoubleSide, MeshBasicMaterial, MeshNormalMaterial, NeutralToneMapping, PerspectiveCamera,
  PMREMGenerator, RepeatWrapping, Scene, SRGBColorSpace, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
export { RoomEnvironment } from "three/addons/environments/RoomEnvironment.js";
