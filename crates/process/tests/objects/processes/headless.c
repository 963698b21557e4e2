// object: a process whose first thread has ended (`pthread_exit` in `main`) while others go on
// status: refused: first thread has ended
// note: let `main` wait for its threads
#include "object.h"
#include <pthread.h>

static void *serve(void *nothing) {
    (void)nothing;
    while (go_on()) {}
    PASS();
}

int main(void) {
    pthread_t thread;
    ready();
    pthread_create(&thread, 0, serve, 0);
    pthread_exit(0);
}
