// Prints what the Khronos validator finds in glTF files: errors, warnings, infos, hints of each.
//
//     npm install gltf-validator
//     node scripts/validate_gltf.mjs FILE...
//
// The package is looked for in the current folder. The exit code is 1 where a file has an error or a warning.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const validator = createRequire(join(process.cwd(), "package.json"))("gltf-validator");
let failed = false;
for (const file of process.argv.slice(2)) {
  const report = await validator.validateBytes(new Uint8Array(await readFile(file)), {
    uri: file,
    externalResourceFunction: async (uri) =>
      new Uint8Array(await readFile(join(dirname(file), decodeURIComponent(uri)))),
  });
  const { numErrors, numWarnings, numInfos, numHints, messages } = report.issues;
  console.log(`${file}: ${numErrors} errors, ${numWarnings} warnings, ${numInfos} infos, ${numHints} hints`);
  for (const code of new Set(messages.filter((item) => item.severity < 2).map((item) => item.code))) {
    console.log(`  ${code}: ${messages.find((item) => item.code === code).message}`);
  }
  failed ||= numErrors + numWarnings > 0;
}
process.exit(failed ? 1 : 0);
