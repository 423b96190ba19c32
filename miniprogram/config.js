// config.js says where wxopenid runs: scheme, host and port, with no slash at the end.
//
// On a phone localhost is the phone itself, so write the computer's address on the local
// network instead, for example http://192.168.1.5:2020. A released mini program can reach
// only https domains that are on its list.
const baseURL = 'http://localhost:2020'

module.exports = { baseURL }
