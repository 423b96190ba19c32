// Where wxopenid runs: scheme, host and port, with no slash at the end.
//
// On a phone localhost is the phone, so write the computer's address on the local
// network instead: http://192.168.1.5:2020, say. A released mini program reaches
// nothing but https domains that are on its list.
module.exports = {
  baseURL: 'http://localhost:2020'
}
