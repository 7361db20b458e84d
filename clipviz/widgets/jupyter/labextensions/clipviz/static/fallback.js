// An extension of JupyterLab, as it is loaded: written by hand, nothing is built.
//
// A notebook that was run and saved in JupyterLab is trusted when it is opened again, so its widgets are preferred to
// the pictures beside them. Their kernel is gone, and "model not found" is all that is shown. Here is what can be explored
// without one, or the picture.

(() => {
  const WIDGET = "application/vnd.jupyter.widget-view+json";
  const CLIPVIZ = /^(LiveMonitor|SaliencyExplorer|PrototypeExplorer|CompareExplorer|DKAPlayground|DescriptionPlayground)\(/;

  const isOurs = (data) => data["image/jpeg"] && CLIPVIZ.test([data["text/plain"]].flat().join(""));

  const showPast = (renderer, model) => {
    const html = [model.data["text/html"] ?? ""].flat().join("");
    // A fragment's scripts run: the notebook is trusted, or its widget would not have been preferred.
    if (html) return renderer.node.replaceChildren(document.createRange().createContextualFragment(html));
    const picture = document.createElement("img");
    picture.src = `data:image/jpeg;base64,${[model.data["image/jpeg"]].flat().join("").replace(/\s/g, "")}`;
    picture.alt = model.metadata?.["image/jpeg"]?.alt || "";
    picture.className = "clipviz-picture-of-the-past";
    picture.style.maxWidth = "100%";
    renderer.node.replaceChildren(picture);
  };

  const guard = (renderer) => {
    const render = renderer.renderModel.bind(renderer);
    renderer.renderModel = async (model) => {
      await render(model);
      if (isOurs(model.data) && renderer.node.textContent.includes("model not found")) showPast(renderer, model);
    };
    return renderer;
  };

  const plugin = {
    id: "clipviz:fallback",
    autoStart: true,
    activate: (app) => {
      app.docRegistry.addWidgetExtension("Notebook", {
        createNew: (panel) => {
          const rendermime = panel.content.rendermime;
          const create = rendermime.createRenderer.bind(rendermime);
          rendermime.createRenderer = (mime) => (mime === WIDGET ? guard(create(mime)) : create(mime));
        },
      });
    },
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.clipviz = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
})();
