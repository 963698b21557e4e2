// object: a POSIX message queue that tells of a message by a signal (`mq_notify`), and one that nobody has open
// status: captured
#include "object.h"

#include <fcntl.h>
#include <mqueue.h>

static volatile int told;

static void tell(int number, siginfo_t *info, void *context) {
    (void)context;
    if (number == SIGRTMIN && info->si_code == SI_MESGQ) told = info->si_value.sival_int;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGRTMIN, &action, 0) == 0);
    struct mq_attr about = {.mq_maxmsg = 4, .mq_msgsize = 64};
    mqd_t kept = mq_open("/kept", O_WRONLY | O_CREAT | O_EXCL, 0600, &about);
    CHECK(kept != (mqd_t)-1 && mq_send(kept, "kept", 4, 7) == 0 && close(kept) == 0);
    mqd_t queue = mq_open("/told", O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &about);
    CHECK(queue != (mqd_t)-1);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    ready();
    for (int turn = 1; go_on(); turn++) {
        char bytes[64];
        event.sigev_value.sival_int = turn;
        CHECK(mq_notify(queue, &event) == 0);
        CHECK(mq_notify(queue, &event) == -1 && errno == EBUSY);
        go_on();
        CHECK(told != turn);
        CHECK(mq_send(queue, "told", 4, 0) == 0);
        for (int rests = 0; told != turn; rests++) {
            if (rests > 5000) FAIL("not told of message %d", turn);
            usleep(1000);
        }
        CHECK_EQUAL(mq_receive(queue, bytes, sizeof bytes, 0), 4);
    }
    char bytes[64];
    unsigned priority;
    kept = mq_open("/kept", O_RDONLY);
    CHECK(kept != (mqd_t)-1 && mq_receive(kept, bytes, sizeof bytes, &priority) == 4);
    CHECK(!memcmp(bytes, "kept", 4));
    CHECK_EQUAL(priority, 7);
    PASS();
}
