// object: a POSIX message queue that tells of a message by a thread (`mq_notify` with SIGEV_THREAD)
// status: refused: SIGEV_THREAD
// note: let the program be told by a signal, or wait in a thread of its own
#include "object.h"

#include <fcntl.h>
#include <mqueue.h>

static void told(union sigval value) { (void)value; }

int main(void) {
    mqd_t queue = mq_open("/object", O_RDWR | O_CREAT, 0600, 0);
    CHECK(queue != (mqd_t)-1);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = told};
    CHECK(mq_notify(queue, &event) == 0);
    ready();
    while (go_on()) {}
    PASS();
}
