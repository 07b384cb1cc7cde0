// What the landing page's own reader reads: node landing.mjs MODULE URL; prints an object by array path.
const { openArrays } = await import(process.argv[2]);
const found = {};
for (const [path, array] of await openArrays(process.argv[3])) {
  const start = array.shape.map((n) => Math.floor(n / 3));
  const box = [start, array.shape.map((n, axis) => Math.max(start[axis] + 1, n - 1))];
  const [whole, part] = await Promise.all([array.read(array.shape.map(() => 0), array.shape), array.read(...box)]);
  const text = (values) => Array.from(values, String);
  found[path] = { shape: array.shape, whole: text(whole), box, part: text(part), missing: array.missing.map(String) };
}
console.log(JSON.stringify(found));
