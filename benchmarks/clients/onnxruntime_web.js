// Runs the ONNX file that the first argument names on images from standard input: four int32, their shape, then as many
// float32. Answers on standard output: an int32, the number of logits, then those as float32.
const fs = require("fs");
const ort = require("onnxruntime-web");

function read(bytes) {
  const buffer = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    const got = fs.readSync(0, buffer, done, bytes - done);
    if (got === 0) process.exit(0); // nobody asks any more
    done += got;
  }
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + bytes);
}

function write(array) {
  const buffer = Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  for (let done = 0; done < buffer.length; ) done += fs.writeSync(1, buffer, done);
}

async function main(path) {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(path));
  for (;;) {
    const shape = Array.from(new Int32Array(read(16)));
    const images = new Float32Array(read(4 * shape.reduce((a, b) => a * b)));
    const outputs = await session.run({ input: new ort.Tensor("float32", images, shape) });
    const logits = outputs[session.outputNames[0]].data;
    write(new Int32Array([logits.length]));
    write(logits);
  }
}

if (process.argv[2] === "--version") console.log(ort.env.versions.web);
else main(process.argv[2]).catch((error) => { console.error(error.message); process.exit(1); });
