// object: POSIX message queues (mq_open)
// status: refused: mq_open
// note: nothing captures them yet; use System V message queues, a pipe or a unix socket
#include "object.h"

#include <fcntl.h>
#include <mqueue.h>

int main(void) {
    mqd_t queue = mq_open("/object", O_RDWR | O_CREAT, 0600, 0);
    CHECK(queue != (mqd_t)-1);
    ready();
    char bytes[8192];
    do {
        CHECK(mq_send(queue, "hello", 5, 1) == 0);
        CHECK_EQUAL(mq_receive(queue, bytes, sizeof bytes, 0), 5);
    } while (go_on());
    PASS();
}
