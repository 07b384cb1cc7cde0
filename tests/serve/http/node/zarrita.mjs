// What zarrita.js reads: node zarrita.mjs URL PATH...; prints an object by array path.
import * as zarr from "zarrita";

const [url, ...paths] = process.argv.slice(2);
const root = zarr.root(new zarr.FetchStore(url));
const found = {};
for (const path of paths) {
  const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
  const all = await zarr.get(array);
  // Of an array without dimensions there is a value.
  const values = typeof all === "object" ? all.data : [all];
  found[path] = { shape: array.shape, values: Array.from(values, (value) => (typeof value === "boolean" ? Number(value) : value).toString()) };
}
console.log(JSON.stringify(found));
