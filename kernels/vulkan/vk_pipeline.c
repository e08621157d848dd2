/* vk_pipeline.c: the pipelines of a device: one for each shader and set of constants, shared by its programs.
 *
 * The table has a fixed size, so that what a device holds does not grow. A pipeline that no program uses keeps its
 * place until another needs it: sessions come and go over the same model. Layer L2. */
#include "vulkan.h"

static bool same(const q_vk_pipeline *a, const q_vk_pass *b) {
    return a->handle && a->shader == b->shader && memcmp(a->spec, b->spec, sizeof a->spec) == 0;
}

/* Its place: where it is already, else a free one, else one that nobody uses. */
static q_vk_pipeline *place_of(q_device *dev, const q_vk_pass *pass) {
    q_vk_pipeline *unused = NULL;
    for (uint32_t i = 0; i < Q_VK_PIPELINES; i++) {
        q_vk_pipeline *p = &dev->pipelines[i];
        if (same(p, pass)) return p;
        if (!p->handle && (!unused || unused->handle)) unused = p;
        if (p->uses == 0 && !unused) unused = p;
    }
    return unused;
}

static lq_status make(q_device *dev, const q_vk_pass *pass, VkPipeline *out) {
    const q_vk_shader *shader = &q_vk_shaders[pass->shader];
    uint32_t *words = NULL;
    uint64_t bytes = 0;
    Q_TRY(q_vk_words(dev->alloc, shader, pass->spec, &words, &bytes));
    const VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = (size_t)bytes, .pCode = words};
    VkSpecializationMapEntry entries[Q_VK_SPECS];
    for (uint32_t i = 0; i < Q_VK_SPECS; i++)
        entries[i] = (VkSpecializationMapEntry){i, i * (uint32_t)sizeof pass->spec[0], sizeof pass->spec[0]};
    const VkSpecializationInfo spec = {Q_VK_SPECS, entries, sizeof pass->spec, pass->spec};
    VkShaderModule module = VK_NULL_HANDLE;
    const VkResult m = dev->vk.CreateShaderModule(dev->handle, &code, NULL, &module);
    q_delete(dev->alloc, words);
    Q_TRY(q_vk_result(dev, m, "CreateShaderModule"));
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module, .pName = "main", .pSpecializationInfo = &spec},
        .layout = dev->layout, .basePipelineIndex = -1};
    VkPipeline pipeline = VK_NULL_HANDLE;
    const VkResult r = dev->vk.CreateComputePipelines(dev->handle, dev->cache, 1, &info, NULL, &pipeline);
    dev->vk.DestroyShaderModule(dev->handle, module, NULL);
    const lq_status s = q_vk_result(dev, r, "CreateComputePipelines");
    if (s != LQ_OK) return q_fail_in(s, "shader %s", shader->name);
    *out = pipeline;
    return LQ_OK;
}

static lq_status take(q_device *dev, const q_vk_pass *pass, q_vk_pipeline **out) {
    q_vk_pipeline *p = place_of(dev, pass);
    if (!p)
        return q_fail(LQ_E_LIMIT, "vulkan:%u (%s): more than %d pipelines are in use", dev->index, dev->name,
                      (int)Q_VK_PIPELINES);
    if (!same(p, pass)) {
        VkPipeline fresh = VK_NULL_HANDLE;
        Q_TRY(make(dev, pass, &fresh));
        if (p->handle) dev->vk.DestroyPipeline(dev->handle, p->handle, NULL);
        *p = (q_vk_pipeline){.handle = fresh, .shader = pass->shader};
        memcpy(p->spec, pass->spec, sizeof p->spec);
    }
    p->uses++;
    *out = p;
    return LQ_OK;
}

lq_status q_vk_pipeline_take(q_device *dev, const q_vk_pass *pass, uint32_t *number, VkPipeline *out) {
    q_vk_pipeline *p = NULL;
    q_mutex_lock(&dev->lock);
    const lq_status s = take(dev, pass, &p);
    if (s == LQ_OK) {
        *number = (uint32_t)(p - dev->pipelines);
        *out = p->handle;
    }
    q_mutex_unlock(&dev->lock);
    return s;
}

void q_vk_pipeline_give(q_device *dev, uint32_t number) {
    q_mutex_lock(&dev->lock);
    dev->pipelines[number].uses--;
    q_mutex_unlock(&dev->lock);
}

void q_vk_pipelines_close(q_device *dev) {
    for (uint32_t i = 0; i < Q_VK_PIPELINES; i++)
        if (dev->pipelines[i].handle) dev->vk.DestroyPipeline(dev->handle, dev->pipelines[i].handle, NULL);
}
