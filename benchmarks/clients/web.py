"""onnxruntime-web (WebAssembly) under node: npm install --ignore-scripts onnxruntime-web, in the folder --node-modules."""
