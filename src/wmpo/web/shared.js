const $ = id => document.getElementById(id), token = new URLSearchParams(location.search).get("token") || "";

async function call(name, asked = {}) {
  const answer = await fetch("/" + name, { method: "POST", body: JSON.stringify(asked),
    headers: { "Content-Type": "application/json", "X-Token": token } });
  const found = await answer.json();
  if (found.error) throw Error(found.error);
  return found;
}
const picture = url => new Promise((good, bad) => { const image = new Image(); image.onload = () => good(image); image.onerror = bad; image.src = url; });
