// Fields beside objects that exist, made by four threads at once and read in another file; freed with the object, or forgotten with
// the patch.
// build: gcc -O2 -pthread $FLAGS -o program shadow.c shadow_side.c
// old: -100 -1 -1
// new: 400 4 -1
// new: 800 8 -1
// old: -100 -1 -1
// new: 400 4 -1
// switched: release,tries_of,try
#include <pthread.h>
#include "program.h"
#include "shadow.h"

static struct session sessions[100];

#ifdef FIXED
#include <outlive_shadow.h>
enum { TRIES = 1, OTHER = 2 };
APART void try(struct session *session) {
    long *tries = (long *)outlive_shadow_make(session, TRIES, sizeof *tries);
    __atomic_add_fetch(tries, 1, __ATOMIC_RELAXED);
    *(char *)outlive_shadow_make(session, OTHER, 1) = 'x';
}
APART void release(struct session *session) {
    outlive_shadow_free(session, OTHER);
    if (outlive_shadow_get(session, OTHER)) abort();
    outlive_shadow_free_all(session);
}
void outlive_patch_revert(void) { outlive_shadow_forget(); }
#else
APART void try(struct session *session) { session->number += session->number < 0; }
APART void release(struct session *session) { session->number += session->number < 0; }
#endif

static void *run(void *argument) {
    for (int i = 0; i < 100; i++) try(&sessions[i]);
    return argument;
}

void answer(char *out, size_t size) {
    static struct session released;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, run, NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    try(&released);
    release(&released);
    long sum = 0;
    for (int i = 0; i < 100; i++) sum += tries_of(&sessions[i]);
    snprintf(out, size, "%ld %ld %ld", sum, tries_of(&sessions[99]), tries_of(&released));
}
